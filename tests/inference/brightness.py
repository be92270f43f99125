"""A method without weights, for tests of where things are found."""

from __future__ import annotations

import torch

from unimmad.config.method import MethodSettings
from unimmad.methods.single_image import SingleImageMethod

SIZE = 32


class Brightness(SingleImageMethod[torch.Tensor]):
    """Whose maps are the images: what is bright is anomalous."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = MethodSettings(image_size=SIZE, backbone="none")
        self.largest_batch = 0

    def load_backbone(self) -> str:
        return "none"

    def compare(self, images_TCHW):
        self.largest_batch = max(self.largest_batch, len(images_TCHW))
        return images_TCHW

    def token_losses(self, compared, facts):
        raise NotImplementedError

    def token_maps(self, compared):
        return (compared.mean(1) + 3).clamp_min(0)
