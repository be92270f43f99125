"""Methods made for one image: each modality's image is an input of its own, with shared weights.

A sample's maps are joined as UniMMAD joins its own, by the root of the sum of squares over its modalities.

Letters: B samples, T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from unimmad.model.anomaly_map import parts_of_squares
from unimmad.model.method import Loss, Method, OwnLevels, StepFacts, check_slots, sample_of_token

Compared = TypeVar("Compared")
"""What a method makes of images, such as the teacher's features and their reconstruction."""


@dataclass(frozen=True)
class OfTokens(Generic[Compared]):
    """What a forward pass gives."""

    compared: Compared
    sample_of_token_T: Tensor
    batch: int


class SingleImageMethod(Method, Generic[Compared]):
    """The images of a batch go through ``compare`` side by side, whatever sample and modality they belong to."""

    @abstractmethod
    def compare(self, images_TCHW: Tensor) -> Compared:
        """What losses and maps are made of."""

    @abstractmethod
    def token_losses(self, compared: Compared, facts: StepFacts) -> Tensor:
        """The loss of each image, [T]; their mean is what the method's authors minimise."""

    @abstractmethod
    def token_maps(self, compared: Compared) -> Tensor:
        """The anomaly map of each image before blurring, 0 or more: float32 [T, H, W]."""

    def forward(
        self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor
    ) -> OfTokens[Compared]:
        return OfTokens(
            self.compare(images_TCHW.contiguous(memory_format=self.memory_format)),
            sample_of_token(tokens_per_sample, images_TCHW.device),
            len(tokens_per_sample),
        )

    def loss(self, output: OfTokens[Compared], facts: StepFacts) -> Loss:
        """The weighted mean over the global batch's tokens, as this rank's share of it."""
        tokens = facts.global_sum(facts.weight_of_token_T.new_tensor(float(len(facts.weight_of_token_T))))
        losses_T = self.token_losses(output.compared, facts)
        return Loss((losses_T * facts.weight_of_token_T).sum() * (facts.world_size / tokens), {})

    def maps(self, output: OfTokens[Compared]) -> Tensor:
        maps_THW = self.token_maps(output.compared)
        squares_BHW = maps_THW.new_zeros(output.batch, *maps_THW.shape[1:])
        return squares_BHW.index_add(0, output.sample_of_token_T, maps_THW.square()).sqrt()

    def parts(self, output: OfTokens[Compared]) -> Tensor:
        squares_THW = self.token_maps(output.compared).square()
        return parts_of_squares(squares_THW, output.sample_of_token_T, output.batch)

    def own_levels(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> OwnLevels:
        return OwnLevels((self.token_maps(self.compare(images_TCHW)),))

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        check_slots(slots, self.modality_slots)
        return _FixedModalities(self)


class _FixedModalities(nn.Module):
    """Every sample has as many images, so that no list of counts is needed."""

    def __init__(self, method: SingleImageMethod[Any]) -> None:
        super().__init__()
        self.method = method.eval()

    def forward(self, images_BMCHW: Tensor) -> Tensor:
        """Normalised images -> maps before blurring, float32 [B, H, W]."""
        maps_THW = self.method.token_maps(self.method.compare(images_BMCHW.flatten(0, 1)))
        return maps_THW.unflatten(0, images_BMCHW.shape[:2]).square().sum(dim=1).sqrt()
