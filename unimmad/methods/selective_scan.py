"""The selective scan of Mamba in plain torch: a linear recurrence whose decay and input depend on the token.

Token by token, in the dtype of the arguments, with x = delta u:

    h_t = exp(delta_t A) h_{t-1} + B_t x_t        y_t = C_t h_t

Nothing is ever divided by a decay, so any step size is safe. The states of a whole sequence, N times as large as its
input, are never kept: a block of tokens at a time is expanded in buffers that serve all blocks, the states between
blocks are kept, and the backward pass computes the others again from them.

Letters: L positions of a sequence, t positions of a block, R rows (independent sequences), D channels, N states of a
channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUFFER_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}
"""Elements of one buffer: what a CPU's caches hold, and what keeps a GPU busy."""
LEAST_BLOCK = 16
"""Tokens of a block at least, which bounds the states that are kept; where rows are many they go in groups instead."""
LEAST_SECTION = 32
MOST_SECTIONS = 32


@torch.compiler.disable  # which would unroll thousands of steps
def selective_scan(
    u_LRD: Tensor, delta_LRD: Tensor, A_RND: Tensor, B_LRN: Tensor, C_LRN: Tensor, sections: int | None = None
) -> Tensor:
    """Scan R sequences, each from a state of zeros: y, [L, R, D].

    Args:
        u_LRD: the input.
        delta_LRD: step sizes, 0 or more.
        A_RND: rates, 0 or less.
        B_LRN: how a token enters the states.
        C_LRN: how a token reads them.
        sections: parts of a sequence that are scanned side by side: that many times fewer steps one after the other
            for twice the arithmetic. What suits the device if not given.
    """
    length, rows = delta_LRD.shape[:2]
    x_LRD = delta_LRD * u_LRD
    if torch.compiler.is_exporting():
        return _scan_by_doubling(delta_LRD, x_LRD, A_RND, B_LRN, C_LRN)
    sections = sections or _sections(length, delta_LRD.device)
    if sections == 1:
        return _scan(delta_LRD, x_LRD, A_RND, B_LRN, C_LRN, torch.zeros_like(A_RND))[0]
    delta, x, B, C = (_cut(value, sections) for value in (delta_LRD, x_LRD, B_LRN, C_LRN))
    A = A_RND.repeat(sections, 1, 1)
    ends = _scan(delta, x, A, B, None, torch.zeros_like(A))[1].unflatten(0, (sections, rows))
    decays = torch.exp(delta.sum(0)[:, None, :] * A).unflatten(0, (sections, rows))
    starts = [torch.zeros_like(A_RND)]
    for section in range(sections - 1):
        starts.append(torch.addcmul(ends[section], decays[section], starts[-1]))
    y = _scan(delta, x, A, B, C, torch.cat(starts))[0]
    return y.unflatten(1, (sections, rows)).transpose(0, 1).flatten(0, 1)[:length]


def _scan_by_doubling(delta_LRD: Tensor, x_LRD: Tensor, A_RND: Tensor, B_LRN: Tensor, C_LRN: Tensor) -> Tensor:
    """For programs without loops: few operations, each on the states of whole sequences. [L, R, D]"""
    decay_LRND = torch.exp(delta_LRD[:, :, None, :] * A_RND)
    h_LRND = x_LRD[:, :, None, :] * B_LRN[..., None]
    reach = 1  # every state holds what its last tokens, so many, have brought in
    while reach < delta_LRD.shape[0]:
        h_LRND = torch.cat([h_LRND[:reach], h_LRND[reach:] + decay_LRND[reach:] * h_LRND[:-reach]])
        decay_LRND = torch.cat([decay_LRND[:reach], decay_LRND[reach:] * decay_LRND[:-reach]])
        reach *= 2
    return (C_LRN[..., None] * h_LRND).sum(2)


def _sections(length: int, device: torch.device) -> int:
    """On a GPU a step costs a launch, however small it is; on a CPU it costs its arithmetic."""
    return 1 if device.type == "cpu" else max(1, min(MOST_SECTIONS, length // LEAST_SECTION))


def _cut(value_LRE: Tensor, sections: int) -> Tensor:
    """[L, R, E] to [L / sections, sections * R, E]; zeros, which change no state, fill the last section."""
    length = len(value_LRE)
    section = -(-length // sections)
    padded = torch.cat([value_LRE, value_LRE.new_zeros(section * sections - length, *value_LRE.shape[1:])])
    return padded.unflatten(0, (sections, section)).transpose(0, 1).flatten(1, 2)


def _scan(
    delta_LRD: Tensor, x_LRD: Tensor, A_RND: Tensor, B_LRN: Tensor, C_LRN: Tensor | None, start_RND: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, [L, R, D] (without ``C_LRN`` nothing, [0]), and the states after the last token, [R, N, D]."""
    return _Scan.apply(delta_LRD, x_LRD, A_RND, B_LRN, C_LRN, start_RND)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        delta_LRD: Tensor,
        x_LRD: Tensor,
        A_RND: Tensor,
        B_LRN: Tensor,
        C_LRN: Tensor | None,
        start_RND: Tensor,
    ) -> tuple[Tensor, Tensor]:
        y_LRD = x_LRD.new_empty(0) if C_LRN is None else torch.empty_like(x_LRD)
        end_RND = torch.empty_like(start_RND)
        differentiable = any(ctx.needs_input_grad)
        starts = []
        with torch.autocast(A_RND.device.type, enabled=False):
            for rows, blocks in _groups(len(x_LRD), A_RND):
                A, state = A_RND[rows], start_RND[rows]
                buffers = _buffers(2, blocks[0], A)
                for block in blocks:
                    at = (block, rows)
                    decay, h = (buffer[: block.stop - block.start] for buffer in buffers)
                    _expand(decay, h, delta_LRD[at], x_LRD[at], A, B_LRN[at], state)
                    if differentiable:
                        starts.append(state)
                    state = h[-1].clone()
                    if C_LRN is not None:
                        y_LRD[at] = _sum_states(C_LRN[at], h)
                end_RND[rows] = state
        if differentiable:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(delta_LRD, x_LRD, A_RND, B_LRN, C_LRN, *starts)
        return y_LRD, end_RND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_LRD: Tensor | None, grad_end_RND: Tensor | None) -> tuple[Tensor | None, ...]:
        delta_LRD, x_LRD, A_RND, B_LRN, C_LRN, *starts = ctx.saved_tensors
        to_delta, to_x, to_A, to_B = (torch.zeros_like(value) for value in (delta_LRD, x_LRD, A_RND, B_LRN))
        to_C = None if C_LRN is None or grad_y_LRD is None else torch.empty_like(C_LRN)
        to_start = torch.zeros_like(A_RND) if grad_end_RND is None else grad_end_RND.clone()
        with torch.autocast(A_RND.device.type, enabled=False):
            for rows, blocks in reversed(list(_groups(len(x_LRD), A_RND))):
                A, to_state = A_RND[rows], to_start[rows]
                buffers = _buffers(3, blocks[0], A)
                for block in reversed(blocks):
                    at, start = (block, rows), starts.pop()
                    decay, h, to_h = (buffer[: block.stop - block.start] for buffer in buffers)
                    _expand(decay, h, delta_LRD[at], x_LRD[at], A, B_LRN[at], start)
                    if to_C is None or grad_y_LRD is None:
                        to_h.zero_()
                    else:
                        torch.mul(grad_y_LRD[at][:, :, None, :], C_LRN[at][..., None], out=to_h)
                        to_C[at] = _sum_channels(h, grad_y_LRD[at])
                    _accumulate_backwards(decay, to_h, to_state)
                    torch.mul(decay[0], to_h[0], out=to_state)
                    to_x[at] = _sum_states(B_LRN[at], to_h)
                    to_B[at] = _sum_channels(to_h, x_LRD[at])
                    to_exponent = _gradient_of_exponent(decay, h, to_h, start)
                    to_delta[at] = torch.mul(to_exponent, A, out=h).sum(2)
                    to_A[rows] += to_exponent.mul_(delta_LRD[at][:, :, None, :]).sum(0)
        return to_delta, to_x, to_A, to_B, to_C, to_start


def _groups(length: int, A_RND: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Which rows go together, and the blocks of tokens that they are scanned in."""
    rows, states, channels = A_RND.shape
    row_tokens = max(BUFFER_ELEMENTS.get(A_RND.device.type, BUFFER_ELEMENTS["cuda"]) // (states * channels), 1)
    group = min(rows, max(row_tokens // LEAST_BLOCK, 1))
    block = max(row_tokens // group, LEAST_BLOCK)
    blocks = [slice(first, min(first + block, length)) for first in range(0, length, block)]
    for first in range(0, rows, group):
        yield slice(first, min(first + group, rows)), blocks


def _buffers(count: int, block: slice, A_RND: Tensor) -> list[Tensor]:
    """Memory that serves every block: new memory for each would cost more than the arithmetic."""
    return [A_RND.new_empty(block.stop - block.start, *A_RND.shape) for _ in range(count)]


def _expand(
    decay_tRND: Tensor,
    h_tRND: Tensor,
    delta_tRD: Tensor,
    x_tRD: Tensor,
    A_RND: Tensor,
    B_tRN: Tensor,
    start_RND: Tensor,
) -> None:
    """Fill the two buffers with the decays and the states of a block of tokens."""
    torch.mul(delta_tRD[:, :, None, :], A_RND, out=decay_tRND).exp_()
    torch.mul(x_tRD[:, :, None, :], B_tRN[..., None], out=h_tRND)
    before_RND = start_RND
    for decay_RND, h_RND in zip(decay_tRND.unbind(), h_tRND.unbind(), strict=True):
        before_RND = h_RND.addcmul_(decay_RND, before_RND)


def _accumulate_backwards(decay_tRND: Tensor, to_h_tRND: Tensor, to_end_RND: Tensor) -> None:
    """Add to every state's gradient what comes from the states after it."""
    decays, gradients = decay_tRND.unbind(), to_h_tRND.unbind()
    gradients[-1].add_(to_end_RND)
    for t in range(len(gradients) - 2, -1, -1):
        gradients[t].addcmul_(decays[t + 1], gradients[t + 1])


def _gradient_of_exponent(decay_tRND: Tensor, h_tRND: Tensor, to_h_tRND: Tensor, start_RND: Tensor) -> Tensor:
    """That of delta A, in the memory of the decays."""
    decay_tRND[1:] *= h_tRND[:-1]
    decay_tRND[0] *= start_RND
    return decay_tRND.mul_(to_h_tRND)


def _sum_states(weight_tRN: Tensor, h_tRND: Tensor) -> Tensor:
    """[t, R, D]"""
    return (weight_tRN[:, :, None, :] @ h_tRND)[:, :, 0]


def _sum_channels(h_tRND: Tensor, weight_tRD: Tensor) -> Tensor:
    """[t, R, N]; as a row times a matrix, which is several times faster on a CPU than the matrix times a column."""
    return (weight_tRD[:, :, None, :] @ h_tRND.transpose(2, 3))[:, :, 0]
