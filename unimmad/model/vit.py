"""A vision transformer of timm's that gives the tokens behind some of its blocks; frozen, it is a teacher.

Letters: N images, P patches of an image, R tokens before them (class and registers), D channels of a token.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from unimmad.model.backbone import TimmNetwork
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports

ensure_torchvision_imports()
import timm  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402

if TYPE_CHECKING:
    from unimmad.config.method import PositionResampling


@dataclass(frozen=True)
class Tokens:
    """What a block gives."""

    patches_NPD: Tensor
    """Row by row."""
    prefix_NRD: Tensor


class VisionTransformer(TimmNetwork):
    """The blocks of a vision transformer up to the last one asked for."""

    trained_on: ClassVar[str] = "pretrained"

    def __init__(
        self, name: str, blocks: Sequence[int], image_size: int, position_resampling: PositionResampling
    ) -> None:
        """Build with random weights.

        Args:
            name: one of timm's networks.
            blocks: those whose outputs are given, ascending, counted from 0.
            image_size: height and width of every image.
            position_resampling: how position embeddings made for another size are brought to this one.

        Raises:
            ValueError: timm knows no such network, it is not a vision transformer, it has fewer blocks, or its patches
                do not tile the image.
        """
        super().__init__()
        self.name = name
        self.blocks = list(blocks)
        self.image_size = image_size
        self.position_resampling = position_resampling
        self.network = self.new_network(pretrained=False)
        self.grid = _patches_a_side(self.network, name, image_size)
        self.dim: int = self.network.embed_dim
        self.heads: int = self.network.blocks[0].attn.num_heads

    def new_network(self, pretrained: bool) -> Any:
        # With timm's weights it is as they are; ``fitted`` brings them to this image size.
        size = {} if pretrained else {"img_size": self.image_size}
        try:
            network = timm.create_model(self.name, pretrained=pretrained, **size)
            depth = len(network.blocks)
            has_tokens = network.num_prefix_tokens >= 0 and hasattr(network.blocks[0].attn, "num_heads")
        except Exception as error:  # timm raises many kinds for an unknown or unsuitable network
            if pretrained:
                raise
            raise ValueError(
                f"model.backbone: timm can't build {self.name!r} as a vision transformer: {error}"
            ) from None
        if not has_tokens:
            raise ValueError(f"model.backbone: {self.name!r} is not a plain vision transformer")
        if self.blocks[-1] >= depth:
            raise ValueError(
                f"model: block {self.blocks[-1]} of {self.name} is asked for, which has blocks 0 to {depth - 1}"
            )
        network.prune_intermediate_layers(self.blocks, prune_norm=True)
        return network

    def tokens(self, images_NCHW: Tensor, with_prefix: bool) -> list[Any]:
        """The outputs of ``blocks``, in their order, before any last normalisation: patches [N, P, D], or, with the
        tokens before them, pairs of [N, P, D] and [N, R, D]."""
        return self.network.forward_intermediates(
            images_NCHW,
            indices=self.blocks,
            return_prefix_tokens=with_prefix,
            output_fmt="NLC",
            intermediates_only=True,
        )

    def as_map(self, patches_NPD: Tensor) -> Tensor:
        """[N, P, D] to [N, D, grid, grid]."""
        return patches_NPD.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Brings position embeddings to this grid; a file may also have the names of the network's authors."""
        state = dict(state)
        projection = "patch_embed.proj.weight"
        if projection in state and state[projection].shape != self.network.patch_embed.proj.weight.shape:
            return state  # which does not fit; timm would make patches of another size fit, and not say so
        if isinstance(getattr(self.network, "pos_embed", None), Tensor) and "pos_embed" in state:
            state["pos_embed"] = resampled_positions(state["pos_embed"], self.grid, self.position_resampling)
        rename = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        return state if rename is None else rename(state, self.network)


class FrozenViT(VisionTransformer):
    """Always in eval mode, without gradient."""

    def __init__(
        self, name: str, blocks: Sequence[int], image_size: int, position_resampling: PositionResampling
    ) -> None:
        """As ``VisionTransformer``."""
        super().__init__(name, blocks, image_size, position_resampling)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images_NCHW: Tensor) -> list[Tokens]:
        """What ``blocks`` give, in their order."""
        prefix = self.network.num_prefix_tokens
        return [Tokens(tokens_NTD[:, prefix:], tokens_NTD[:, :prefix]) for tokens_NTD in self.features(images_NCHW)]

    @torch.no_grad()
    def features(self, images_NCHW: Tensor) -> list[Tensor]:
        """The same with prefix and patches side by side, [N, R + P, D] each."""
        if not self.network.num_prefix_tokens:
            return list(self.tokens(images_NCHW, with_prefix=False))
        outputs = self.tokens(images_NCHW, with_prefix=True)
        return [torch.cat([prefix_NRD, patches_NPD], dim=1) for patches_NPD, prefix_NRD in outputs]


def _patches_a_side(network: Any, name: str, image_size: int) -> int:
    patch: int = network.patch_embed.patch_size[0]
    below = image_size // patch * patch
    if below != image_size:
        sizes = [str(size) for size in (below, below + patch) if size]
        raise ValueError(
            f"model.image_size: {image_size} is not a multiple of {patch}, the patch size of {name}; "
            f"the nearest that are: {' and '.join(sizes)}"
        )
    return image_size // patch


def resampled_positions(pos_embed: Tensor, grid: int, how: PositionResampling) -> Tensor:
    """Position embeddings [1, prefix + g * g, D] at ``grid`` * ``grid`` patches; those before the patches stay."""
    side = isqrt(pos_embed.shape[1])
    prefix = pos_embed.shape[1] - side**2
    if side == grid:
        return pos_embed
    if how == "timm":
        return resample_abs_pos_embed(pos_embed, new_size=[grid, grid], num_prefix_tokens=prefix)
    before, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    maps_1Dgg = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factor = (grid + 0.1) / side
    resampled = F.interpolate(maps_1Dgg, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([before, resampled.flatten(2).transpose(1, 2)], dim=1)
