"""Methods with a frozen backbone, and those single-image ones that compare its features with a reconstruction.

Letters: T tokens (sample, modality), C_l channels of level l, h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from unimmad.config.method import MethodSettings
from unimmad.methods.single_image import Compared, SingleImageMethod
from unimmad.model.backbone import Backbone, TimmNetwork, calibrate_batchnorm, load_backbone_weights
from unimmad.model.backends.convolution import use_fast_convolutions
from unimmad.model.folding import FoldedTeacher, fold_batchnorm, rest_on_host


class FrozenTeacher(nn.Module):
    """A teacher that never trains: evaluation mode, whatever the rest is in."""

    settings: MethodSettings
    teacher: TimmNetwork

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def load_backbone(self) -> str:
        return load_backbone_weights(self.teacher, self.settings.backbone_weights)

    def calibrate_backbone(self, batches: Iterable[Tensor]) -> None:
        calibrate_batchnorm(self.teacher, batches)


class FrozenTeacherMethod(FrozenTeacher, SingleImageMethod[Compared]):
    """Its teacher's features are compared with what the rest makes of them."""

    teacher: Backbone

    def __init__(self, settings: MethodSettings, teacher: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.teacher = teacher.eval().requires_grad_(False)
        self.folded_teacher: FoldedTeacher | None = None
        """Gives the teacher's maps in its place, once its weights are final."""

    def freeze_teacher(self) -> None:
        """From now on maps come from a folded copy of the teacher, on its device; checkpoints alone need the teacher
        itself, which goes to the host."""
        self.folded_teacher = FoldedTeacher(self.teacher)
        rest_on_host(self.teacher)

    def frozen_features(self) -> tuple[Any, str] | None:
        return self, "folded_teacher"

    def inference_form(self, cache_bytes: int) -> Self:
        """BatchNorm is folded into the convolutions, of which those of large maps need fewer multiplications."""
        self.eval().requires_grad_(False)
        self.folded_teacher = None  # the teacher itself is folded
        for network in self.children():
            fold_batchnorm(network)
            use_fast_convolutions(network)
        return self

    def networks(self) -> list[nn.Module]:
        teacher = self.teacher if self.folded_teacher is None else self.folded_teacher.network
        return [teacher, *(network for network in self.children() if network is not self.teacher)]

    def teacher_maps(self, images_TCHW: Tensor) -> list[Tensor]:
        """The teacher's features, finest first: [T, C_l, h, w]."""
        with torch.no_grad():  # in inference mode the backward pass could not save them
            return (self.folded_teacher or self.teacher)(images_TCHW)

    def teacher_levels(self, images_TCHW: Tensor) -> list[Tensor]:
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return self.teacher_maps(images_TCHW.float())
