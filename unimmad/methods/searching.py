"""UniMMAD with a search beside its reconstruction: both look at the same frozen features.

The search (level_search.py) is fitted when the training ends; until then the reconstruction scores alone. How far a
token is from its reconstruction is divided by what is usual in training at its level, as the search's distances are by
what is usual between normal images. A token's map is the harmonic mean of all levels of both: what is anomalous must be
so to both. Without a training step nothing is usual yet, and the search scores alone.

Letters: B samples, T tokens (sample, modality), L levels, C_l channels of level l, h x w positions of a level,
H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unimmad.config import ModelSettings
from unimmad.methods.fitted_by_search import FittedBySearch
from unimmad.methods.level_maps import sum_of_tokens
from unimmad.methods.level_search import LevelSearch, LevelSearchSettings, Ratios
from unimmad.model.fixed_modalities import FixedModalities
from unimmad.model.method import ROOT_OF_SQUARES, Gather, Loss, StepFacts, check_slots, sample_of_token
from unimmad.model.unimmad import Reconstruction, UniMMAD

JOINED = "sum of the harmonic means of search's and reconstruction's levels"
RECONSTRUCTED = f"{ROOT_OF_SQUARES}; reconstruction alone, since the search is fitted when the training ends"
MOMENTUM = 0.05
"""What a batch counts beside those before it."""


class SearchingSettings(ModelSettings):
    """UniMMAD's, and the search's."""

    search: LevelSearchSettings = LevelSearchSettings()
    """What the search beside the reconstruction keeps."""


@dataclass(frozen=True, kw_only=True)
class SearchedReconstruction(Reconstruction):
    """What a forward pass gives once the search is fitted."""

    ratios: Ratios


class SearchingUniMMAD(FittedBySearch, UniMMAD):
    """Trained as UniMMAD is, then fitted."""

    modalities_joined = JOINED
    own_tensors = ("usual_L",)

    settings: SearchingSettings

    def __init__(self, settings: SearchingSettings) -> None:
        """The model with random weights and no banks.

        Raises:
            ValueError: the backbone does not exist or does not fit.
        """
        super().__init__(settings)
        self.keeps_teacher_maps = True
        channels = self.encoder.channels
        self.search = LevelSearch(settings.search, channels, settings.modality_slots)
        self.usual_L: Tensor
        """The mean distance of training tokens at each level, of late; 0 before the first."""
        self.register_buffer("usual_L", torch.zeros(len(channels)))
        self._say_how_it_scores()

    def teacher_maps(self, images_TCHW: Tensor) -> list[Tensor]:
        """In scoring in float32 whatever autocast says, since banks are compared with them."""
        if self.training:
            return super().teacher_maps(images_TCHW)
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return super().teacher_maps(images_TCHW.float())

    @torch.no_grad()
    def maps_to_search(self, images_TCHW: Tensor) -> list[Tensor]:
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return self.teacher_maps(images_TCHW.float())

    def finish(self, gather: Gather) -> None:
        super().finish(gather)
        self._say_how_it_scores()

    def restore(self, description: Mapping[str, Any]) -> None:
        super().restore(description)
        self._say_how_it_scores()

    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
        *,
        drawn_TCHW: Tensor | None = None,
    ) -> Reconstruction:
        output = super().forward(images_TCHW, tokens_per_sample, slot_of_token_T, drawn_TCHW=drawn_TCHW)
        if self.training or not self.search.is_fitted:
            return replace(output, teacher_maps=())
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        classes_T = [None if classes is None else classes[sample] for sample in samples]
        ratios = self.search.ratios(output.teacher_maps, classes_T, slot_of_token_T.tolist())
        return SearchedReconstruction(**(vars(output) | {"teacher_maps": ()}), ratios=ratios)

    def loss(self, output: Reconstruction, facts: StepFacts) -> Loss:
        """UniMMAD's; on the way it takes in how far tokens are from their reconstructions."""
        self._take_in([distance_Thw.detach().mean((1, 2)) for distance_Thw in output.distances], facts)
        return super().loss(output, facts)

    def _take_in(self, of_levels: Sequence[Tensor], facts: StepFacts) -> None:
        if self.experts_alone:
            return  # every class is divided by it, old ones too
        sums = facts.global_sum(
            torch.stack([*(mean_T.sum() for mean_T in of_levels), torch.ones_like(of_levels[0]).sum()])
        )
        means_L = sums[:-1] / sums[-1]
        self.usual_L.copy_(torch.where(self.usual_L == 0, means_L, self.usual_L.lerp(means_L, MOMENTUM)))

    def maps(self, output: Reconstruction) -> Tensor:
        if not isinstance(output, SearchedReconstruction):
            return super().maps(output)
        maps_THW = self.joined(output.ratios, output.distances)
        return sum_of_tokens(maps_THW, output.sample_of_token_T, output.batch)

    def parts(self, output: Reconstruction) -> Tensor:
        if not isinstance(output, SearchedReconstruction):
            return super().parts(output)
        return self.joined(output.ratios, output.distances)

    def joined(self, ratios: Ratios, distances: Sequence[Tensor]) -> Tensor:
        """Of every token what the search and the reconstruction, [T, h, w] a level, say: [T, H, W]."""
        seen_L = self.usual_L > 0
        usual_L = torch.where(seen_L, self.usual_L, 1)
        rebuilt = [distance_Thw / usual for distance_Thw, usual in zip(distances, usual_L, strict=True)]
        return self.search.joined(ratios, self.image_size, rebuilt, seen_L.to(usual_L.dtype))

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """As ``Method``'s; the class of a sample is not known to it."""
        if not self.search.is_fitted:
            return super().with_fixed_modalities(slots)
        check_slots(slots, self.modality_slots)
        return _FixedModalities(self, slots)

    def _say_how_it_scores(self) -> None:
        self.modalities_joined = JOINED if self.is_fitted else RECONSTRUCTED
        self.looks_at_class = self.is_fitted and self.settings.search.bank_per == "class"


class _FixedModalities(FixedModalities):
    """With the search's maps joined."""

    model: SearchingUniMMAD

    def joined(self, distances: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
        of_modalities = []
        for place, slot in enumerate(self.slots):
            ratios = self.model.search.traced_ratios([level_BMChw[:, place] for level_BMChw in teacher_maps], slot)
            of_modalities.append(self.model.joined(ratios, [level_BMhw[:, place] for level_BMhw in distances]))
        return torch.stack(of_modalities).sum(0)
