"""Search for the nearest normal patches level by level: what is anomalous must be so at every level.

Each level of the frozen teacher has banks of its own. A patch's distance to its bank is divided by what is usual
between normal images there, so that it is about 1 for a normal patch at every level and of every modality. A token's
map is the harmonic mean of its levels' distances, which is large only where all are: fine levels say where, coarse
ones what.

The whole image may be one level more: how far the mean feature of the middle level lies from those of normal images.
And a discriminator (discriminator.py), fitted to anomalies that are drawn onto training images, may say where
distances look like an anomaly's; the map is multiplied by that.

Letters: B samples, T tokens (sample, modality), C_l channels of level l, h x w positions of a level,
H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from unimmad.config.fields import NotNegative, Positive, Real, Section
from unimmad.methods.banks import Banks, BankSettings
from unimmad.methods.discriminator import Discriminator, fitted_discriminator
from unimmad.methods.discriminators import Discriminators
from unimmad.methods.drawn_examples import drawn_examples
from unimmad.methods.image_sample import ImageSample
from unimmad.methods.level_maps import at_image_size, described, harmonic_mean, nearer_class
from unimmad.methods.submodules import in_submodule
from unimmad.model.method import Gather

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


class Ratios(NamedTuple):
    """What a search says of T tokens."""

    levels: tuple[Tensor, ...]
    """Distances over usual ones, float32 [T, h, w] of each level, finest first; where the whole image is a level, that
    comes last, [T, 1, 1]."""
    logits_Thw: Tensor | None
    """Of the discriminator that judges the token's bank, 0 where none does; None where there is none at all."""


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
        self.discriminators = Discriminators(len(channels))
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
        of_class = [number for number, name in enumerate(self.banks[0].names) if name.class_name in ("", class_name)]
        return any(map(self.discriminators.judges, of_class))

    def begin(self, seed: int, adding: bool = False) -> None:
        """See ``Fitted``; with ``adding`` discriminators stay as well, and learn from no new image."""
        for level in self.all_banks:
            level.begin(seed, adding)
        self._seed = seed
        self._images = ImageSample(self.drawn_on, seed)
        if not adding:
            self.discriminators.begin()

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
        self.discriminators.take_in(len(self.banks[0].names), self._new_discriminator(gather, maps_of))

    def _new_discriminator(
        self, gather: Gather, maps_of: Callable[[Tensor], list[Tensor]] | None
    ) -> Discriminator | None:
        """None where none is wanted, or there is nothing to learn from."""
        images = self._images.gathered(gather) if self.drawn_on else []
        if not images or maps_of is None:
            return None

        def patches_of(images_VCHW: Tensor) -> list[Tensor]:
            return [described(map_VChw) for map_VChw in maps_of(images_VCHW)]

        examples = drawn_examples(images, self.banks, patches_of, self._seed)
        return None if examples is None else fitted_discriminator(examples, self._seed)

    def describe(self) -> dict[str, Any]:
        """See ``Fitted``."""
        return self.banks[0].describe() | self.discriminators.describe()

    def restore(self, description: Mapping[str, Any]) -> None:
        """See ``Fitted``."""
        of_banks = {name: value for name, value in description.items() if name != "judged_by"}
        for level in self.all_banks:
            level.restore(of_banks)
        self.discriminators.restore(description, len(self.banks[0].names))

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See ``Fitted``; names are those in this module."""
        for number, level in enumerate(self.banks):
            level.resize(in_submodule(shapes, f"levels.{number}"))
        for whole in self.whole:
            cast(Banks, whole).resize(in_submodule(shapes, "whole.0"))
        self.discriminators.resize(in_submodule(shapes, "discriminators"), self.banks[0].device)

    def forget(self, classes: Sequence[str]) -> None:
        """See ``Fitted``."""
        kept = [number for number, name in enumerate(self.banks[0].names) if name.class_name not in classes]
        self.discriminators.keep(kept)
        for level in self.all_banks:
            level.forget(classes)

    def take_owners(self, made: LevelSearch) -> None:
        """See ``Fitted``."""
        for level, as_made in zip(self.all_banks, made.all_banks, strict=True):
            level.take_owners(as_made)

    @contextmanager
    def leave_out(self, photograph: str) -> Iterator[None]:
        """See ``Fitted``; a discriminator stays what all images made of it."""
        with ExitStack() as levels:
            for level in self.all_banks:
                levels.enter_context(level.leave_out(photograph))
            yield

    def has_others(self, class_name: str) -> bool:
        """See ``Fitted``."""
        return all(level.has_others(class_name) for level in self.all_banks)

    @torch.no_grad()
    def ratios(self, maps: Sequence[Tensor], classes_T: Sequence[str | None], slots_T: Sequence[int]) -> Ratios:
        """Of every token.

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
        of_each = patches + patches[:1] if self.is_discriminated else patches
        best = [torch.full_like(patches_ThwC[..., 0], torch.inf) for patches_ThwC in of_each]
        for number in sorted({number for numbers in numbers_T for number in numbers}):
            tokens = [token for token, numbers in enumerate(numbers_T) if number in numbers]
            chosen_t = torch.tensor(tokens, device=best[0].device)
            levels = zip(self.all_banks, patches, strict=True)
            found = [level.scores(patches_ThwC[chosen_t], number) for level, patches_ThwC in levels]
            found += self._logits(found, number)
            nearer = nearer_class([held_Thw[chosen_t] for held_Thw in best], found, len(patches))
            for held_Thw, kept_thw in zip(best, nearer, strict=True):
                held_Thw[chosen_t] = kept_thw
        return self._as_ratios(best)

    def traced_ratios(self, maps: Sequence[Tensor], slot: int) -> Ratios:
        """As ``ratios``, of images [B, C_l, h, w] of one slot and unknown class, in operations that can be traced."""
        patches = self.described_levels(maps)
        best: list[Tensor] | None = None
        for number in self.banks[0].banks_to_search(None, slot):
            levels = zip(self.all_banks, patches, strict=True)
            found = [level.traced_scores(patches_BhwC, number) for level, patches_BhwC in levels]
            found += self._logits(found, number)
            best = found if best is None else nearer_class(best, found, len(patches))
        assert best is not None
        return self._as_ratios(best)

    def _logits(self, levels: Sequence[Tensor], number: int) -> list[Tensor]:
        """Of distances to one bank, [t, h, w]; nothing where there is no discriminator."""
        return [self.discriminators.logits(levels[: len(self.levels)], number)] if self.is_discriminated else []

    def _as_ratios(self, maps: Sequence[Tensor]) -> Ratios:
        """From the maps of all levels, and behind them the logits where there is a discriminator."""
        count = len(self.all_banks)
        return Ratios(tuple(maps[:count]), maps[count] if self.is_discriminated else None)

    def joined(
        self,
        ratios: Ratios,
        image_size: int,
        others: Sequence[Tensor] = (),
        weights_of_others: Tensor | None = None,
    ) -> Tensor:
        """The maps of tokens, [T, H, W]: the harmonic mean of all levels, times what the discriminator says.

        Args:
            ratios: what the search says of the tokens.
            image_size: H and W.
            others: levels beside the search's, [T, h, w] each, distances over usual ones as well.
            weights_of_others: what each counts, where one of the search's counts 1; None: as much.
        """
        own = len(ratios.levels)
        ones_L = ratios.levels[0].new_ones(own + len(others))
        weights_L = ones_L if weights_of_others is None else torch.cat([ones_L[:own], weights_of_others])
        maps_THW = harmonic_mean([*ratios.levels, *others], image_size, weights_L)
        if ratios.logits_Thw is None:
            return maps_THW
        return maps_THW * at_image_size((self.drawn_weight * ratios.logits_Thw).exp(), image_size)
