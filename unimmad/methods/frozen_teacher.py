"""Single-image methods that compare a frozen backbone's features with a reconstruction of them.

Letters: T tokens (sample, modality), C_l channels of level l, h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from unimmad.config.method import MethodSettings
from unimmad.methods.single_image import Compared, SingleImageMethod
from unimmad.model.backbone import Backbone, load_backbone_weights
from unimmad.model.folding import FoldedTeacher


class FrozenTeacherMethod(SingleImageMethod[Compared]):
    """Its teacher never trains: no gradient, and evaluation mode whatever the rest is in."""

    def __init__(self, settings: MethodSettings, teacher: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.image_size = settings.image_size
        self.modality_slots = settings.modality_slots
        self.teacher = teacher.eval().requires_grad_(False)
        self.folded_teacher: FoldedTeacher | None = None
        """Gives the teacher's maps in its place, once its weights are final."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def load_backbone(self) -> str:
        """Fill the teacher as ``settings.backbone_weights`` says; returns in words what it now has.

        Raises:
            ValueError: as ``load_backbone_weights``.
        """
        return load_backbone_weights(self.teacher, self.settings.backbone_weights)

    def fold_teacher(self) -> None:
        """From now on maps come from a folded copy of the teacher, on its device, whose weights are final."""
        self.folded_teacher = FoldedTeacher(self.teacher)

    def teacher_maps(self, images_TCHW: Tensor) -> list[Tensor]:
        """The teacher's features, finest first: [T, C_l, h, w]."""
        with torch.no_grad():  # in inference mode the backward pass could not save them
            return (self.folded_teacher or self.teacher)(images_TCHW)
