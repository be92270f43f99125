"""The teacher of a training step: only its maps are wanted, so what they need is computed and no more.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from unimmad.model.backbone import Backbone
from unimmad.model.folding import fold_batchnorm


class FoldedTeacher:
    """A copy of the frozen teacher whose BatchNorm is folded into its convolutions: the same maps, to rounding.

    Not a module: the model's parameters, and so its checkpoints, stay those of the teacher as it was loaded.
    """

    def __init__(self, teacher: Backbone) -> None:
        # Tensors by themselves: fake ones, of a simulated step, can't be deep-copied.
        tensors: dict[int, Any] = {id(buffer): buffer.clone() for buffer in teacher.buffers()}
        for weight in teacher.parameters():
            tensors[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.network = copy.deepcopy(teacher, tensors).eval()
        fold_batchnorm(self.network)
        self.network.requires_grad_(False)

    def __call__(self, images_NCHW: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8 and 16, as ``Backbone``."""
        return self.network(images_NCHW)
