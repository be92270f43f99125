"""What a method is to the rest of the package: a network that gives a loss in training and anomaly maps in scoring.

Trainer, evaluation, Detector and export know this class and no method's name. UniMMAD is one (model/unimmad.py), the
methods that it is compared with are others (unimmad/methods).

Letters: B samples, T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def alone(value: Tensor) -> Tensor:
    """``StepFacts.global_sum`` of one process."""
    return value


@dataclass(frozen=True)
class StepFacts:
    """What a loss may depend on beside a forward pass."""

    weight_of_token_T: Tensor
    """float32; the loss weight of each token's dataset."""
    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """From 0."""
    world_size: int = 1
    global_sum: Callable[[Tensor], Tensor] = alone
    """Sums a tensor over all ranks, without gradient. Collective."""


@dataclass(frozen=True)
class Loss:
    """``total`` is what to differentiate; each is a scalar whose mean over ranks is the global batch's value."""

    total: Tensor
    parts: dict[str, Tensor]
    """What the log shows beside it, by name."""


class Method(nn.Module, ABC):
    """A network with its loss and its maps. Trainable parameters are those that require a gradient."""

    image_size: int
    """Height and width of every image, in pixels."""
    modality_slots: int
    """Images of a sample at most."""

    @abstractmethod
    def forward(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> Any:
        """What ``loss`` and ``maps`` are made of.

        Args:
            images_TCHW: float32, normalised, tokens listed sample by sample.
            tokens_per_sample: B counts, on the host, each 1 or more, summing to T.
            slot_of_token_T: int64, the input slot of each token's modality.
        """

    @abstractmethod
    def loss(self, output: Any, facts: StepFacts) -> Loss:
        """The training loss of this rank's share of the global batch."""

    @abstractmethod
    def maps(self, output: Any) -> Tensor:
        """Anomaly maps before blurring: float32 [B, H, W]."""


def sample_of_token(tokens_per_sample: Sequence[int], device: torch.device) -> Tensor:
    """The sample that each token belongs to: int64 [T]."""
    counts = torch.tensor(tokens_per_sample)
    samples = torch.arange(len(tokens_per_sample))
    # The sum is given so that no size depends on a tensor's values, which fake tensors do not have.
    sample_of_token_T = torch.repeat_interleave(samples, counts, output_size=sum(tokens_per_sample))
    return sample_of_token_T.to(device, non_blocking=True)
