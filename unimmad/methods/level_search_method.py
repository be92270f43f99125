"""The method ``level_search``: the frozen teacher's features, and nothing else, searched level by level.

Letters: B samples, T tokens (sample, modality), h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from unimmad.config.levels import LevelSettings
from unimmad.methods.fitted_by_search import FittedBySearch
from unimmad.methods.frozen_teacher import FrozenTeacher
from unimmad.methods.level_maps import sum_of_tokens
from unimmad.methods.level_search import LevelSearch, LevelSearchSettings, Ratios
from unimmad.model.backbone import LevelNetwork
from unimmad.model.backends.convolution import use_fast_convolutions
from unimmad.model.folding import fold_batchnorm
from unimmad.model.level_networks import new_level_network
from unimmad.model.method import FittedMethod, check_slots, sample_of_token

SUMMED = "sum of the levels' harmonic means"


class LevelSearchMethodSettings(LevelSearchSettings, LevelSettings):
    """The teacher is UniMMAD's."""


@dataclass(frozen=True)
class TokenRatios:
    """What a forward pass gives."""

    ratios: Ratios
    sample_of_token_T: Tensor
    batch: int


class LevelSearchMethod(FittedBySearch, FrozenTeacher, FittedMethod):
    """Search alone: nothing is trained."""

    settings: LevelSearchMethodSettings
    teacher: LevelNetwork
    modalities_joined = SUMMED

    def __init__(self, settings: LevelSearchMethodSettings) -> None:
        """No banks yet.

        Raises:
            ValueError: the backbone does not exist, or its levels can't be had.
        """
        super().__init__()
        self.settings = settings
        self.looks_at_class = settings.bank_per == "class"
        self.teacher = new_level_network(settings, without_rest=True).eval().requires_grad_(False)
        kept = LevelSearchSettings.model_validate(settings.model_dump(include=set(LevelSearchSettings.model_fields)))
        self.search = LevelSearch(kept, self.teacher.channels, settings.modality_slots)

    def inference_form(self, cache_bytes: int) -> Self:
        """BatchNorm is folded into the convolutions, of which those of large maps need fewer multiplications."""
        fold_batchnorm(self.teacher)
        use_fast_convolutions(self.teacher)
        return self.eval()

    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> TokenRatios:
        samples_T = sample_of_token(tokens_per_sample, torch.device("cpu"))
        classes_T = [None if classes is None else classes[sample] for sample in samples_T.tolist()]
        ratios = self.search.ratios(self.maps_to_search(images_TCHW), classes_T, slot_of_token_T.tolist())
        return TokenRatios(ratios, samples_T.to(images_TCHW.device), len(tokens_per_sample))

    def maps(self, output: TokenRatios) -> Tensor:
        return sum_of_tokens(self.parts(output), output.sample_of_token_T, output.batch)

    def parts(self, output: TokenRatios) -> Tensor:
        return self.search.joined(output.ratios, self.image_size)

    def teacher_levels(self, images_TCHW: Tensor) -> list[Tensor]:
        return self.maps_to_search(images_TCHW)

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """As ``Method``'s; the class of a sample is not known to it."""
        check_slots(slots, self.modality_slots)
        return _FixedModalities(self, slots)

    @torch.no_grad()
    def maps_to_search(self, images_TCHW: Tensor) -> list[Tensor]:
        with torch.autocast(images_TCHW.device.type, enabled=False):
            maps: list[Tensor] = self.teacher(images_TCHW.float())
            return maps


class _FixedModalities(nn.Module):
    """Every sample has the modalities of ``slots`` and is of any class; plain operations that can be traced."""

    def __init__(self, method: LevelSearchMethod, slots: Sequence[int]) -> None:
        super().__init__()
        self.method = method.eval()
        self.slots = tuple(slots)

    def forward(self, images_BMCHW: Tensor) -> Tensor:
        """Normalised images -> maps before blurring, float32 [B, H, W]."""
        size, search = self.method.image_size, self.method.search
        maps = [level.unflatten(0, images_BMCHW.shape[:2]) for level in self.method.teacher(images_BMCHW.flatten(0, 1))]
        of_modalities = [
            search.joined(search.traced_ratios([level[:, place] for level in maps], slot), size)
            for place, slot in enumerate(self.slots)
        ]
        return torch.stack(of_modalities).sum(0)
