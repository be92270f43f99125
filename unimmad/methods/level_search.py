"""Search for the nearest normal patches level by level: what is anomalous must be so at every level.

Each level of the frozen teacher has banks of its own. A patch's distance to its bank is divided by what is usual
between normal images there, so that it is about 1 for a normal patch at every level and of every modality. A token's
map is the harmonic mean of its levels' distances, which is large only where all are: fine levels say where, coarse
ones what.

The whole image may be one level more: how far the mean feature of the middle level lies from those of normal images.
And a discriminator (discriminator.py), fitted to anomalies that are drawn onto training images, may say where
distances look like an anomaly's; the map is multiplied by that. Classes that come in later have one of their own, since
what one learned from others serves them badly.

Letters: B samples, T tokens (sample, modality), C_l channels of level l, h x w positions of a level,
H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import NotNegative, Positive, Real, Section
from unimmad.methods.banks import Banks, BankSettings
from unimmad.methods.discriminator import Discriminator, fitted_discriminator
from unimmad.methods.drawn_examples import drawn_examples
from unimmad.methods.image_sample import ImageSample
from unimmad.model.method import Fitted, Gather, sample_of_token

LEAST_RATIO = 0.05
"""Distances count as this share of a usual one at least. Below it there is rounding, and a patch that is in a bank."""
UNJUDGED = -1
WHOLE_NEIGHBOURS = 5
"""Normal images that a whole image is compared with: the nearest ones, by the mean of their distances."""


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
    whole_image: bool = False
    """Whether the whole image is a level, too."""
    drawn_on: NotNegative = 0
    """Training images (of one modality each) that anomalies are drawn onto, for a discriminator to learn from; 0: there
    is none."""
    drawn_weight: Annotated[Real, Field(ge=0, le=1)] = 0.25
    """What the discriminator says counts so much: a map is multiplied by exp(this x its logit)."""


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
        own = {name: getattr(settings, name) for name in ("patches", "bank_per", "max_bank_gb")}
        kept = BankSettings(coreset="random", coreset_share=1.0, distance="root", **own)
        self.levels = nn.ModuleList([Banks(kept, of_level, slots, "normal") for of_level in channels])
        self.middle = (len(channels) - 1) // 2
        """The level whose mean feature stands for the whole image."""
        of_wholes = kept.model_copy(update={"neighbours": WHOLE_NEIGHBOURS})
        whole = [Banks(of_wholes, channels[self.middle], slots, "normal")] if settings.whole_image else []
        self.whole = nn.ModuleList(whole)
        """Of mean features, one an image; empty where the whole image is not a level."""
        self.drawn_on, self.drawn_weight = settings.drawn_on, settings.drawn_weight
        self.discriminators = nn.ModuleList()
        """One, once it is fitted, and one more each time that classes come in."""
        self.judged_by: list[int] = []
        """Which of them judges the distances to each bank; ``UNJUDGED``: none."""
        self._seed = 0
        self._images = ImageSample(self.drawn_on, self._seed)

    @property
    def banks(self) -> list[Banks]:
        """Those of each level, finest first; all of the same classes and slots."""
        return [cast(Banks, level) for level in self.levels]

    @property
    def all_banks(self) -> list[Banks]:
        """Those of each level, and of whole images."""
        return [*self.banks, *cast(list[Banks], list(self.whole))]

    @property
    def is_fitted(self) -> bool:
        """Whether there are banks."""
        return self.banks[0].is_fitted

    @property
    def is_discriminated(self) -> bool:
        """Whether there is a discriminator."""
        return len(self.discriminators) > 0

    def is_judged(self, class_name: str) -> bool:
        """Whether a discriminator judges the distances to this class's banks."""
        judges = zip(self.banks[0].names, self.judged_by, strict=True)
        return self.is_discriminated and any(
            judge != UNJUDGED for name, judge in judges if name.class_name in ("", class_name)
        )

    def begin(self, seed: int, adding: bool = False) -> None:
        """See ``Fitted``; with ``adding`` discriminators stay as well, and learn from no new image."""
        for level in self.all_banks:
            level.begin(seed, adding)
        self._seed = seed
        self._images = ImageSample(self.drawn_on, seed)
        if not adding:
            self.discriminators, self.judged_by = nn.ModuleList(), []

    @torch.no_grad()
    def add(
        self,
        images_TCHW: Tensor,
        maps: Sequence[Tensor],
        classes_T: Sequence[str],
        slots_T: Sequence[int],
        keys_T: Sequence[str],
        views_T: Sequence[int] | None = None,
    ) -> None:
        """Take in tokens by their images and the teacher's maps of them, [T, C_l, h, w] each.

        ``keys_T`` and ``views_T`` as ``Banks.add`` takes them.

        Raises:
            ValueError: there can't be a bank for a slot, or too much would be kept.
        """
        tokens = zip(classes_T, slots_T, strict=True)
        names = [self.banks[0].bank_name(class_name, slot) for class_name, slot in tokens]
        for level, patches_ThwC in zip(self.all_banks, self.described_levels(maps), strict=True):
            level.add(names, keys_T, patches_ThwC.flatten(1, 2), views_T)
        if self.drawn_on:
            views = views_T or [0] * len(keys_T)
            for name, key, view, image_CHW in zip(names, keys_T, views, images_TCHW, strict=True):
                self._images.add(name, key, image_CHW, view)

    def described_levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What ``all_banks`` hold of the teacher's maps: [T, h, w, C_l] each, the whole image as 1 x 1."""
        wholes = [maps[self.middle].float().mean((2, 3))[:, None, None] for _ in self.whole]
        return [*map(described, maps), *wholes]

    def finish(self, gather: Gather, maps_of: Callable[[Tensor], list[Tensor]] | None = None) -> None:
        """See ``Fitted``; ``maps_of`` gives the teacher's maps of images [T, C, H, W] that are on its device, where
        anomalies are to be drawn."""
        for level in self.all_banks:
            level.finish(gather)
        old, new = len(self.judged_by), len(self.banks[0].names) - len(self.judged_by)
        self.judged_by = (self.judged_by if self.discriminators else [UNJUDGED] * old) + [UNJUDGED] * new
        images = self._images.gathered(gather) if self.drawn_on else []
        if not images or maps_of is None:
            return

        def patches_of(images_VCHW: Tensor) -> list[Tensor]:
            return [described(map_VChw) for map_VChw in maps_of(images_VCHW)]

        examples = drawn_examples(images, self.banks, patches_of, self._seed)
        if examples is not None:
            self.judged_by[old:] = [len(self.discriminators)] * new
            self.discriminators.append(fitted_discriminator(examples, self._seed))

    def describe(self) -> dict[str, Any]:
        """See ``Fitted``; where one discriminator judges all banks, as in older versions, it is not said."""
        differ = self.discriminators and any(self.judged_by)
        return self.banks[0].describe() | ({"judged_by": list(self.judged_by)} if differ else {})

    def restore(self, description: Mapping[str, Any]) -> None:
        """See ``Fitted``."""
        of_banks = {name: value for name, value in description.items() if name != "judged_by"}
        for level in self.all_banks:
            level.restore(of_banks)
        banks = len(self.banks[0].names)
        judged_by = description.get("judged_by", [0] * banks)
        if not isinstance(judged_by, list) or len(judged_by) != banks or any(type(one) is not int for one in judged_by):
            raise ValueError(f"this describes no level search: judged_by is not one number for each of {banks} banks")
        self.judged_by = judged_by

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See ``Fitted``; names are those in this module."""
        for number, level in enumerate(self.banks):
            level.resize(in_submodule(shapes, f"levels.{number}"))
        for whole in self.whole:
            cast(Banks, whole).resize(in_submodule(shapes, "whole.0"))
        self.discriminators = nn.ModuleList()
        while of_file := in_submodule(shapes, f"discriminators.{len(self.discriminators)}"):
            discriminator = Discriminator(len(self.levels)).to(self.banks[0].device)
            if of_file != {name: tuple(tensor.shape) for name, tensor in discriminator.state_dict().items()}:
                raise ValueError("a discriminator's tensors are not those of the recipe's levels; the file is damaged")
            self.discriminators.append(discriminator)
        if self.discriminators and not all(UNJUDGED <= one < len(self.discriminators) for one in self.judged_by):
            raise ValueError(f"banks are judged by other discriminators than the file's {len(self.discriminators)}")

    def forget(self, classes: Sequence[str]) -> None:
        """See ``Fitted``."""
        judged = zip(self.banks[0].names, self.judged_by, strict=True)
        self.judged_by = [number for name, number in judged if name.class_name not in classes]
        for level in self.all_banks:
            level.forget(classes)

    def take_owners(self, made: LevelSearch) -> None:
        """See ``Fitted``."""
        for level, as_made in zip(self.all_banks, made.all_banks, strict=True):
            level.take_owners(as_made)

    def leave_out(self, photograph: str | None) -> None:
        """See ``Fitted``; a discriminator stays what all images made of it."""
        for level in self.all_banks:
            level.leave_out(photograph)

    def has_others(self, class_name: str) -> bool:
        """See ``Fitted``."""
        return all(level.has_others(class_name) for level in self.all_banks)

    @torch.no_grad()
    def ratios(self, maps: Sequence[Tensor], classes_T: Sequence[str | None], slots_T: Sequence[int]) -> list[Tensor]:
        """Of every token, level by level: distances over usual ones, float32 [T, h, w]; where the whole image is a
        level, then that, [T, 1, 1]; and where there are discriminators, then the logits of the bank's, [T, h, w].

        Args:
            maps: the teacher's, [T, C_l, h, w] each.
            classes_T: None where a token's class is not known.
            slots_T: of each token's modality.

        Raises:
            ValueError: there is no bank for a token's class or for a slot.
        """
        first = self.banks[0]
        numbers_T = [first.banks_to_search(*token) for token in zip(classes_T, slots_T, strict=True)]
        patches = self.described_levels(maps)
        levels_and_logits = patches + patches[: min(1, len(self.discriminators))]
        best = [torch.full_like(patches_ThwC[..., 0], torch.inf) for patches_ThwC in levels_and_logits]
        for number in sorted({number for numbers in numbers_T for number in numbers}):
            tokens = [token for token, numbers in enumerate(numbers_T) if number in numbers]
            chosen_t = torch.tensor(tokens, device=best[0].device)
            levels = zip(self.all_banks, patches, strict=True)
            found = [level.scores(patches_ThwC[chosen_t], number) for level, patches_ThwC in levels]
            found += self._logits(found, number)
            nearer = nearer_class([held_Thw[chosen_t] for held_Thw in best], found, len(patches))
            for held_Thw, kept_thw in zip(best, nearer, strict=True):
                held_Thw[chosen_t] = kept_thw
        return best

    def traced_ratios(self, maps: Sequence[Tensor], slot: int) -> list[Tensor]:
        """As ``ratios``, of images [B, C_l, h, w] of one slot and unknown class, in operations that can be traced."""
        patches = self.described_levels(maps)
        best: list[Tensor] | None = None
        for number in self.banks[0].banks_to_search(None, slot):
            levels = zip(self.all_banks, patches, strict=True)
            found = [level.traced_scores(patches_BhwC, number) for level, patches_BhwC in levels]
            found += self._logits(found, number)
            best = found if best is None else nearer_class(best, found, len(patches))
        assert best is not None
        return best

    def joined(
        self,
        ratios: Sequence[Tensor],
        image_size: int,
        others: Sequence[Tensor] = (),
        weights_of_others: Tensor | None = None,
    ) -> Tensor:
        """The maps of tokens, [T, H, W]: the harmonic mean of all levels, times what the discriminator says.

        Args:
            ratios: from ``ratios``, with logits where it gives some.
            image_size: H and W.
            others: levels beside the search's, [T, h, w] each, distances over usual ones as well.
            weights_of_others: what each counts, where one of the search's counts 1.
        """
        levels, logits = ratios[: len(self.all_banks)], ratios[len(self.all_banks) :]
        weights_L = levels[0].new_ones(len(levels))
        if weights_of_others is not None:
            weights_L = torch.cat([weights_L, weights_of_others])
        maps_THW = harmonic_mean([*levels, *others], image_size, weights_L)
        return self._times_factors(maps_THW, logits[0]) if logits else maps_THW

    def discriminated(self, maps_THW: Tensor, ratios: Sequence[Tensor]) -> Tensor:
        """Maps times what the first discriminator says of distances to banks that are not of this search."""
        return self._times_factors(maps_THW, self.discriminators[0](ratios[: len(self.levels)]))

    def _times_factors(self, maps_THW: Tensor, logits_Thw: Tensor) -> Tensor:
        return maps_THW * at_image_size((self.drawn_weight * logits_Thw).exp(), maps_THW.shape[-1])

    def _logits(self, ratios: Sequence[Tensor], number: int) -> list[Tensor]:
        """Of distances to one bank, [t, h, w]; 0 where nobody judges it; nothing where there is no discriminator."""
        if not self.discriminators:
            return []
        judge = self.judged_by[number]
        if judge == UNJUDGED:
            return [torch.zeros_like(ratios[0])]
        return [self.discriminators[judge](ratios[: len(self.levels)])]


def described(map_TChw: Tensor) -> Tensor:
    """The means of 3 x 3 windows, zeros beyond the edge: float32 [T, h, w, C]."""
    return F.avg_pool2d(map_TChw.float(), 3, stride=1, padding=1).permute(0, 2, 3, 1)


def nearer_class(first: Sequence[Tensor], second: Sequence[Tensor], levels: int) -> list[Tensor]:
    """Of each token those maps, [t, h, w] each, of which the means of the first ``levels`` add up to less."""
    means_t = [sum(of_level_thw.mean((1, 2)) for of_level_thw in maps[:levels]) for maps in (first, second)]
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
    inverses = [at_image_size(ratio_Thw, image_size).clamp_min(LEAST_RATIO).reciprocal() for ratio_Thw in ratios]
    return weights_L.sum() / (weights_L[:, None, None, None] * torch.stack(inverses)).sum(0)


def at_image_size(map_Thw: Tensor, image_size: int) -> Tensor:
    """Bilinearly: [T, H, W]."""
    size = (image_size, image_size)
    return F.interpolate(map_Thw[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


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

    def begin(self, seed: int, adding: bool = False) -> None:
        self.search.begin(seed, adding)

    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        views: Sequence[int] | None = None,
    ) -> None:
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        of_tokens = (
            [classes[sample] for sample in samples],
            slot_of_token_T.tolist(),
            [keys[sample] for sample in samples],
            None if views is None else [views[sample] for sample in samples],
        )
        self.search.add(images_TCHW, self.maps_to_search(images_TCHW), *of_tokens)

    def finish(self, gather: Gather) -> None:
        self.search.finish(gather, self.maps_to_search)

    def forget(self, classes: Sequence[str]) -> None:
        self.search.forget(classes)

    def is_fitted_to(self, class_name: str) -> bool:
        return self.search.banks[0].is_fitted_to(class_name)

    def take_owners(self, made: Fitted) -> None:
        assert isinstance(made, FittedBySearch)
        self.search.take_owners(made.search)

    def leave_out(self, photograph: str | None) -> None:
        self.search.leave_out(photograph)

    def has_others(self, class_name: str) -> bool:
        return self.search.has_others(class_name)

    def describe(self) -> dict[str, Any]:
        return self.search.describe()

    def restore(self, description: Mapping[str, Any]) -> None:
        self.search.restore(description)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.search.resize(in_submodule(shapes, "search"))


def in_submodule(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a submodule's tensors, by their names in it."""
    prefix = f"{name}."
    return {full.removeprefix(prefix): shape for full, shape in shapes.items() if full.startswith(prefix)}
