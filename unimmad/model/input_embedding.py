"""All modalities of a sample become one 3-channel image (METHOD part 2).

Letters: B samples, T tokens, S slots, C = 3 channels of an image, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InputEmbedding(nn.Module):
    """Places each image in its slot's channels, adds a learned map, and squeezes the 3 S channels to 3."""

    def __init__(self, slots: int, image_size: int) -> None:
        super().__init__()
        self.slots = slots
        channels = 3 * slots
        self.embedding_CHW = nn.Parameter(torch.randn(channels, image_size, image_size) * 0.02)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(inplace=True),
            nn.Conv2d(48, 3, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(channels, 3, 1)

    def forward(self, images_TCHW: Tensor, sample_of_token_T: Tensor, slot_of_token_T: Tensor, batch: int) -> Tensor:
        """[T, 3, H, W] -> [B, 3, H, W]; a missing modality leaves zeros in its slot."""
        placed_BSCHW = images_TCHW.new_zeros(batch, self.slots, *images_TCHW.shape[1:])
        placed_BSCHW = placed_BSCHW.index_put((sample_of_token_T, slot_of_token_T), images_TCHW)
        return self.embed(placed_BSCHW)

    def embed(self, placed_BSCHW: Tensor) -> Tensor:
        """[B, S, 3, H, W], each image in its slot and zeros in the others -> [B, 3, H, W]."""
        x_BCHW = placed_BSCHW.flatten(1, 2) + self.embedding_CHW
        return self.stem(x_BCHW) + self.shortcut(x_BCHW)
