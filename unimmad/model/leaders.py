"""MoE in MoE: leaders mix a bank of base kernels, and a token's routed leaders act as ONE convolution (METHOD part 6).

A convolution is linear in its kernel, so the score-weighted sum of K convolutions is the convolution with the
score-weighted kernel; and each leader's kernel is itself a mixture of base kernels.

Letters: B samples, T tokens, L leaders, K routed leaders, G banks, N base kernels of a bank, E embed channels
(in and out), J = G N base kernels in all, P = E k k weights of an output channel, k x k kernel, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.backends.convolution import SameConvolution, plain_convolution
from unimmad.model.routing import Routing

if TYPE_CHECKING:
    from unimmad.config import ModelSettings


class BaseKernelBank(nn.Module):
    """The base kernels of one level and kernel size: ``banks`` banks of N kernels each."""

    def __init__(self, banks: int, base_experts: int, embed_dim: int, kernel_size: int) -> None:
        super().__init__()
        shape = (banks, base_experts, embed_dim, embed_dim, kernel_size, kernel_size)
        self.kernels_GNEEkk = nn.Parameter(torch.randn(shape) * 0.05)
        self.trained_G: tuple[bool, ...] | None = None
        """Which banks learn, where they require a gradient; None: all."""


class LocalLeaders(nn.Module):
    """All leaders of a branch at hand: the local form of the routed experts."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        shape = (settings.leaders, settings.base_experts, settings.embed_dim)
        self.logits_LNE = nn.Parameter(torch.randn(shape) * settings.initial_leader_std)
        self.leaders_per_bank = settings.leaders // settings.banks

    def forward(self, routing: Routing, kernels_GNEEkk: Tensor, projection_EE: Tensor | None = None) -> Tensor:
        """Every token's mixed kernel: [T, E, E, k, k]."""
        return mix_kernels(
            self.logits_LNE,
            routing.leaders_TK,
            routing.scores_TK,
            kernels_GNEEkk,
            self.leaders_per_bank,
            projection_EE,
        )

    def kernel_of(self, leader: int, kernels_GNEEkk: Tensor) -> Tensor:
        """One leader's mixture of base kernels, [E, E, k, k]; nothing larger is made on the way."""
        shares_NE = self.logits_LNE[leader].softmax(dim=0)
        mixed_EEkk = torch.zeros_like(kernels_GNEEkk[0, 0])
        for base_EEkk, shares_E in zip(kernels_GNEEkk[leader // self.leaders_per_bank], shares_NE, strict=True):
            mixed_EEkk.addcmul_(base_EEkk, shares_E[:, None, None, None])
        return mixed_EEkk


def mix_kernels(
    logits_LNE: Tensor,
    leaders_TK: Tensor,
    scores_TK: Tensor,
    kernels_GNEEkk: Tensor,
    leaders_per_bank: int,
    projection_EE: Tensor | None = None,
) -> Tensor:
    """One kernel a token, [T, E, E, k, k]: sum over its K leaders of score x (leader's mixture of base kernels).

    A leader's mixture is per output channel: softmax over the N base kernels of its own bank. ``projection_EE`` is a
    1x1 convolution that follows (out, in), taken into the kernels.
    """
    banks, base_experts, out_channels, in_channels, size, _ = kernels_GNEEkk.shape
    tokens = leaders_TK.shape[0]
    routed_TKNE = logits_LNE.softmax(dim=1).index_select(0, leaders_TK.flatten()).unflatten(0, leaders_TK.shape)
    shares_TKNE = routed_TKNE * scores_TK[:, :, None, None]
    if banks == 1:
        shares_TJE = shares_TKNE.sum(dim=1)
    else:
        bank_TK = leaders_TK // leaders_per_bank
        one_hot_TKG = F.one_hot(bank_TK, banks).to(shares_TKNE.dtype)
        shares_TJE = torch.einsum("tkne,tkg->tgne", shares_TKNE, one_hot_TKG).flatten(1, 2)
    # A matrix product for each output channel: its token shares [T, G N] x its base kernels [G N, E k k].
    kernels_EJP = kernels_GNEEkk.flatten(0, 1).transpose(0, 1).reshape(out_channels, banks * base_experts, -1)
    # Contiguous, since torch falls back to a loop many times slower for batches of transposed matrices.
    shares_ETJ = shares_TJE.permute(2, 0, 1).to(kernels_EJP.dtype).contiguous()
    mixed_ETP = torch.bmm(shares_ETJ, kernels_EJP)
    if projection_EE is not None:
        mixed_ETP = (projection_EE @ mixed_ETP.flatten(1)).view_as(mixed_ETP)
    return mixed_ETP.transpose(0, 1).reshape(tokens, out_channels, in_channels, size, size)


def convolve_tokens(
    x_BEhw: Tensor,
    kernels_TEEkk: Tensor,
    tokens_per_sample: Sequence[int],
    convolve: SameConvolution = plain_convolution,
) -> Tensor:
    """Each token's kernel over its sample's map: [T, E, h, w]. A sample's tokens run as one convolution.

    Every sample has a token, or there is none at all.
    """
    tokens, out_channels, in_channels, size, _ = kernels_TEEkk.shape
    if tokens == 0:
        # A rank that no token came to: its empty output still depends on what it received, or backward would hang.
        nothing = x_BEhw.sum() + kernels_TEEkk.sum()
        # In the kernels' dtype, as a convolution under autocast: the ranks that exchange it must agree.
        return (x_BEhw.new_zeros(0, out_channels, *x_BEhw.shape[2:]) + nothing).to(kernels_TEEkk.dtype)
    outputs = []
    start = 0
    for x_Ehw, count in zip(x_BEhw, tokens_per_sample, strict=True):
        kernel = kernels_TEEkk[start : start + count].reshape(count * out_channels, in_channels, size, size)
        outputs.append(convolve(x_Ehw[None], kernel).unflatten(1, (count, out_channels))[0])
        start += count
    return torch.cat(outputs)
