"""Search for the nearest normal patches level by level: what is anomalous must be so at every level.

Each level of the frozen teacher has banks of its own. A patch's distance to its bank is divided by what is usual
between normal images there, so that it is about 1 for a normal patch at every level and of every modality. A token's
map is the harmonic mean of its levels' distances, which is large only where all are: fine levels say where, coarse
ones what.

Letters: B samples, T tokens (sample, modality), C_l channels of level l, h x w positions of a level,
H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import Positive, Real, Section
from unimmad.config.levels import LevelSettings
from unimmad.methods.banks import Banks, BankSettings
from unimmad.model.backbone import calibrate_batchnorm, load_backbone_weights
from unimmad.model.backends.convolution import use_fast_convolutions
from unimmad.model.folding import fold_batchnorm
from unimmad.model.level_networks import new_level_network
from unimmad.model.method import Fitted, FittedMethod, Gather, check_slots, sample_of_token

SUMMED = "sum of the levels' harmonic means"
LEAST_RATIO = 0.05
"""Distances count as this share of a usual one at least. Below it there is rounding, and a patch that is in a bank."""


class LevelSearchSettings(Section):
    """What is kept of the training images."""

    patches: Positive = 8000
    """What a bank keeps at most: a random choice among the patches of its training images."""
    bank_per: Literal["class", "all"] = "class"
    """A bank of its own for each class and modality, or one a modality for all classes. Where a sample's class is not
    known, each of its images is scored by the class whose banks give it the smallest mean."""
    max_bank_gb: Annotated[Real, Field(gt=0)] = 8.0
    """What the banks of a level may take together, and before them, in each process, the patches that they are chosen
    from, in units of 10^9 bytes."""


class LevelSearch(nn.Module):
    """The banks of all levels, and what they say of a token."""

    def __init__(self, settings: LevelSearchSettings, channels: Sequence[int], slots: int) -> None:
        """No banks yet.

        Args:
            settings: what is kept.
            channels: C_l of each level, finest first.
            slots: how many modality slots there are.
        """
        super().__init__()
        kept = BankSettings(coreset="random", coreset_share=1.0, distance="root", **settings.model_dump())
        self.levels = nn.ModuleList([Banks(kept, of_level, slots, "normal") for of_level in channels])

    @property
    def banks(self) -> list[Banks]:
        """Those of each level, finest first; all of the same classes and slots."""
        return [cast(Banks, level) for level in self.levels]

    @property
    def is_fitted(self) -> bool:
        """Whether there are banks."""
        return self.banks[0].is_fitted

    def begin(self, seed: int) -> None:
        """See ``Fitted``."""
        for level in self.banks:
            level.begin(seed)

    @torch.no_grad()
    def add(
        self, maps: Sequence[Tensor], classes_T: Sequence[str], slots_T: Sequence[int], keys_T: Sequence[str]
    ) -> None:
        """Take in tokens by the teacher's maps, [T, C_l, h, w] each.

        Raises:
            ValueError: there can't be a bank for a slot, or too much would be kept.
        """
        for level, map_TChw in zip(self.banks, maps, strict=True):
            names = [level.bank_name(class_name, slot) for class_name, slot in zip(classes_T, slots_T, strict=True)]
            level.add(names, keys_T, described(map_TChw).flatten(1, 2))

    def finish(self, gather: Gather) -> None:
        """See ``Fitted``."""
        for level in self.banks:
            level.finish(gather)

    def describe(self) -> dict[str, Any]:
        """See ``Fitted``."""
        return self.banks[0].describe()

    def restore(self, description: Mapping[str, Any]) -> None:
        """See ``Fitted``."""
        for level in self.banks:
            level.restore(description)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See ``Fitted``; names are those in this module."""
        for number, level in enumerate(self.banks):
            level.resize(in_submodule(shapes, f"levels.{number}"))

    @torch.no_grad()
    def ratios_without(self, maps: Sequence[Tensor], class_name: str, slot: int, images: Tensor) -> list[Tensor]:
        """As ``ratios``, of tokens of one slot, as if the images of these hashes (``hash_of_key``) were in no bank;
        right after ``finish``."""
        number = self.banks[0].banks_to_search(class_name, slot)[0]
        levels = zip(self.banks, maps, strict=True)
        return [level.scores_without(described(map_TChw), number, images) for level, map_TChw in levels]

    @torch.no_grad()
    def ratios(self, maps: Sequence[Tensor], classes_T: Sequence[str | None], slots_T: Sequence[int]) -> list[Tensor]:
        """Of every token, level by level: distances over usual ones, float32 [T, h, w].

        Args:
            maps: the teacher's, [T, C_l, h, w] each.
            classes_T: None where a token's class is not known.
            slots_T: of each token's modality.

        Raises:
            ValueError: there is no bank for a token's class or for a slot.
        """
        first = self.banks[0]
        numbers_T = [first.banks_to_search(*token) for token in zip(classes_T, slots_T, strict=True)]
        patches = [described(map_TChw) for map_TChw in maps]
        best = [torch.full_like(patches_ThwC[..., 0], torch.inf) for patches_ThwC in patches]
        for number in sorted({number for numbers in numbers_T for number in numbers}):
            tokens = [token for token, numbers in enumerate(numbers_T) if number in numbers]
            chosen_t = torch.tensor(tokens, device=best[0].device)
            levels = zip(self.banks, patches, strict=True)
            found = [level.scores(patches_ThwC[chosen_t], number) for level, patches_ThwC in levels]
            nearer = nearer_class([held_Thw[chosen_t] for held_Thw in best], found)
            for held_Thw, kept_thw in zip(best, nearer, strict=True):
                held_Thw[chosen_t] = kept_thw
        return best

    def traced_ratios(self, maps: Sequence[Tensor], slot: int) -> list[Tensor]:
        """As ``ratios``, of images [B, C_l, h, w] of one slot and unknown class, in operations that can be traced."""
        patches = [described(map_BChw) for map_BChw in maps]
        best: list[Tensor] | None = None
        for number in self.banks[0].banks_to_search(None, slot):
            levels = zip(self.banks, patches, strict=True)
            found = [level.traced_scores(patches_BhwC, number) for level, patches_BhwC in levels]
            best = found if best is None else nearer_class(best, found)
        assert best is not None
        return best


def described(map_TChw: Tensor) -> Tensor:
    """The means of 3 x 3 windows, zeros beyond the edge: float32 [T, h, w, C]."""
    return F.avg_pool2d(map_TChw.float(), 3, stride=1, padding=1).permute(0, 2, 3, 1)


def nearer_class(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    """Of each token the levels, [t, h, w] each, whose means add up to less."""
    means_t = [sum(of_level_thw.mean((1, 2)) for of_level_thw in levels) for levels in (first, second)]
    is_second_t11 = (means_t[1] < means_t[0])[:, None, None]  # type: ignore[index]
    return [torch.where(is_second_t11, *pair) for pair in zip(second, first, strict=True)]


def harmonic_mean(ratios: Sequence[Tensor], image_size: int, weights_L: Tensor | None = None) -> Tensor:
    """Of all levels, [T, h, w] each, brought bilinearly to the image size: [T, H, W].

    Args:
        ratios: distances over usual ones.
        image_size: H and W.
        weights_L: what each counts; None: all alike.
    """
    if weights_L is None:
        weights_L = ratios[0].new_ones(len(ratios))
    size = (image_size, image_size)
    inverses_LTHW = torch.stack(
        [
            F.interpolate(ratio_Thw[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
            .clamp_min(LEAST_RATIO)
            .reciprocal()
            for ratio_Thw in ratios
        ]
    )
    return weights_L.sum() / (weights_L[:, None, None, None] * inverses_LTHW).sum(0)


def sum_of_tokens(maps_THW: Tensor, sample_of_token_T: Tensor, batch: int) -> Tensor:
    """[B, H, W]."""
    return maps_THW.new_zeros(batch, *maps_THW.shape[1:]).index_add(0, sample_of_token_T, maps_THW)


class FittedBySearch(Fitted):
    """A method that is fitted in that its search is."""

    search: LevelSearch

    @abstractmethod
    def maps_to_search(self, images_TCHW: Tensor) -> list[Tensor]:
        """The teacher's, float32 whatever autocast says: [T, C_l, h, w] each."""

    @property
    def is_fitted(self) -> bool:
        return self.search.is_fitted

    def begin(self, seed: int) -> None:
        self.search.begin(seed)

    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
    ) -> None:
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        of_tokens = (
            [classes[sample] for sample in samples],
            slot_of_token_T.tolist(),
            [keys[sample] for sample in samples],
        )
        self.search.add(self.maps_to_search(images_TCHW), *of_tokens)

    def finish(self, gather: Gather) -> None:
        self.search.finish(gather)

    def describe(self) -> dict[str, Any]:
        return self.search.describe()

    def restore(self, description: Mapping[str, Any]) -> None:
        self.search.restore(description)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.search.resize(in_submodule(shapes, "search"))


class LevelSearchMethodSettings(LevelSearchSettings, LevelSettings):
    """The teacher is UniMMAD's."""


@dataclass(frozen=True)
class TokenRatios:
    """What a forward pass gives."""

    ratios: Sequence[Tensor]
    """Of each level, finest first: [T, h, w]."""
    sample_of_token_T: Tensor
    batch: int


class LevelSearchMethod(FittedBySearch, FittedMethod):
    """Search alone: nothing is trained."""

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

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def load_backbone(self) -> str:
        return load_backbone_weights(self.teacher, self.settings.backbone_weights)

    def calibrate_backbone(self, batches: Iterable[Tensor]) -> None:
        calibrate_batchnorm(self.teacher, batches)

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
        maps_THW = harmonic_mean(output.ratios, self.image_size)
        return sum_of_tokens(maps_THW, output.sample_of_token_T, output.batch)

    def parts(self, output: TokenRatios) -> Tensor:
        return harmonic_mean(output.ratios, self.image_size)

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
            harmonic_mean(search.traced_ratios([level[:, place] for level in maps], slot), size)
            for place, slot in enumerate(self.slots)
        ]
        return torch.stack(of_modalities).sum(0)


def in_submodule(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a submodule's tensors, by their names in it."""
    prefix = f"{name}."
    return {full.removeprefix(prefix): shape for full, shape in shapes.items() if full.startswith(prefix)}
