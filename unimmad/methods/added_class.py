"""Classes added to a finished model from a few normal images each: nothing is trained.

Beside the model's own weights a class has a bank: a search level by level (level_search.py) over the frozen teacher's
features. What the trained network alone says of a token, divided by what is usual on the class's images, joins the
search's levels as in searching.py: by the harmonic mean. So any method has it that has a frozen teacher. Where the
method's own search has the whole image as a level, so has the bank. Its discriminator does not judge the bank's
distances: what that learned from other classes may lose most of the anomalous images of a kind that it never saw
(docs/continual.md).

Letters: B samples, T tokens (sample, modality), L levels of the search, O levels of the model's own, h x w positions of
a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from unimmad.methods.fitted_by_search import FittedBySearch
from unimmad.methods.level_maps import sum_of_tokens
from unimmad.methods.level_search import LevelSearch, LevelSearchSettings
from unimmad.model.method import Fitted, Loss, Method, OwnLevels, StepFacts, sample_of_token
from unimmad.model.routing import Routing

LEAST_USUAL = 1e-6
"""What is usual of the model's own distances is this at least: below it there is rounding."""


class AddedBank(nn.Module):
    """What a model knows of one added class."""

    def __init__(self, class_name: str, channels: Sequence[int], slots: int, whole_image: bool = False) -> None:
        """Nothing yet; ``empty_bank`` makes the one that suits a model.

        Args:
            class_name: ``DATASET/CLASS``.
            channels: C_l of the teacher's levels, finest first.
            slots: how many modality slots the model has.
            whole_image: whether the whole image is a level, too.
        """
        super().__init__()
        self.class_name = class_name
        self.search = LevelSearch(LevelSearchSettings(whole_image=whole_image), channels, slots)
        self.usual_SO: Tensor
        """The mean of the model's own distances on the class's images, by slot and level; 0 of a slot without any."""
        self.register_buffer("usual_SO", torch.zeros(slots, 0))

    @property
    def slots(self) -> set[int]:
        """Of the modalities that it knows."""
        return {name.slot for name in self.search.banks[0].names}

    def begin(self) -> None:
        """Before the class's images."""
        self.search.begin(0)
        self._sums: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, model: Method, images_MCHW: Tensor, slots: Sequence[int], key: str, view: int = 0) -> None:
        """Take in one view of a photograph of the class, normalised; ``key`` tells that from all others.

        Raises:
            ValueError: too much would be kept.
        """
        slots_M = torch.tensor(slots, device=images_MCHW.device)
        maps = searched_levels(model, images_MCHW)
        count = len(slots)
        self.search.add(images_MCHW, maps, [self.class_name] * count, slots, [key] * count, [view] * count)
        own = model.own_levels(images_MCHW, (len(slots),), slots_M).distances
        for place, slot in enumerate(slots):
            self._sums.setdefault(slot, []).append(
                torch.stack([level_Mhw[place].mean() for level_Mhw in own]) if own else torch.empty(0)
            )

    def finish(self) -> None:
        """Make the banks of what was taken in."""
        self.search.finish(lambda given: given)
        means = {slot: torch.stack(found).mean(0).cpu() for slot, found in self._sums.items()}
        del self._sums
        levels = len(next(iter(means.values())))
        usual_SO = torch.zeros(self.search.banks[0].slots, levels)
        for slot, mean_O in means.items():
            usual_SO[slot] = mean_O.clamp_min(LEAST_USUAL)
        self.usual_SO = usual_SO.to(self.usual_SO.device)

    def leave_out(self, key: str) -> AbstractContextManager[None]:
        """While this is entered, score as if this photograph were in no bank; right after they were made."""
        return self.search.leave_out(key)

    def token_maps(self, model: Method, features: Sequence[Tensor], own: OwnLevels, slots_T: Sequence[int]) -> Tensor:
        """[T, H, W], of tokens of this class.

        Args:
            model: what the bank was added to.
            features: its ``teacher_levels`` of the tokens.
            own: its ``own_levels`` of them.
            slots_T: of each token's modality.

        Raises:
            ValueError: the class's images had no modality of a slot.
        """
        ratios = self.search.ratios(features, [self.class_name] * len(slots_T), slots_T)
        usual_TO = self.usual_SO[torch.tensor(slots_T, device=self.usual_SO.device)]
        rebuilt = [
            distance_Thw / usual_TO[:, level, None, None].to(distance_Thw.device)
            for level, distance_Thw in enumerate(own.distances)
        ]
        return self.search.joined(ratios, model.image_size, rebuilt)

    @classmethod
    def of(
        cls, model: Method, class_name: str, banks: Sequence[Sequence[str | int]], tensors: Mapping[str, Tensor]
    ) -> AddedBank:
        """That of ``DATASET/CLASS`` for this model, from what ``search.describe()["banks"]`` said and its state dict.

        Raises:
            ValueError: they are of another model or do not fit each other.
        """
        shapes = {name.removeprefix("search."): tuple(tensor.shape) for name, tensor in tensors.items()}
        whole_image = any(name.startswith("whole.") for name in shapes)
        bank = cls(class_name, teacher_channels(model), model.modality_slots, whole_image)
        bank.search.restore({"banks": [list(name) for name in banks]})
        bank.search.resize({name: shape for name, shape in shapes.items() if name != "usual_SO"})
        bank.usual_SO = torch.zeros(shapes.get("usual_SO", (0, 0)))
        try:
            bank.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(f"its tensors are not those of a class's bank ({str(error).splitlines()[0]})") from None
        return bank


def empty_bank(model: Method, class_name: str) -> AddedBank:
    """One for ``DATASET/CLASS`` that has the levels that the method's own search has, on the model's device.

    Raises:
        ValueError: as ``searched_levels``.
    """
    search, device = own_search(model), next(model.parameters()).device
    whole_image = search is not None and bool(search.whole)
    return AddedBank(class_name, teacher_channels(model), model.modality_slots, whole_image).to(device)


def own_search(model: Method) -> LevelSearch | None:
    """That of a method which searches level by level itself, None of others."""
    return model.search if isinstance(model, FittedBySearch) else None


def searched_levels(model: Method, images_TCHW: Tensor) -> list[Tensor]:
    """``Method.teacher_levels`` of methods that have them.

    Raises:
        ValueError: this one has none.
    """
    maps = model.teacher_levels(images_TCHW)
    if maps is None:
        raise ValueError(
            f"the method {type(model).__name__} has no frozen levels that could be searched, so no class can be "
            "added to it; UniMMAD, unimmad_search, level_search, rd, uniad and mambaad have"
        )
    return maps


@torch.no_grad()
def teacher_channels(model: Method) -> list[int]:
    """C_l of the teacher's levels, finest first.

    Raises:
        ValueError: as ``searched_levels``.
    """
    device = next(model.parameters()).device
    maps = searched_levels(model, torch.zeros(1, 3, model.image_size, model.image_size, device=device))
    return [map_TChw.shape[1] for map_TChw in maps]


@dataclass(frozen=True)
class WithAdded:
    """What a forward pass gives."""

    base: Any
    """The model's own output, of the samples at ``base_at``; None where there are none."""
    base_at: tuple[int, ...]
    maps_THW: Tensor | None
    """Of the tokens of samples of added classes, the samples at ``added_at``."""
    added_at: tuple[int, ...]
    sample_of_token_T: Tensor | None
    """Each of these tokens' place in ``added_at``."""
    tokens_per_sample: tuple[int, ...]
    """Of all samples."""
    routings: Sequence[Sequence[Routing]]


class WithAddedClasses(Method):
    """A model and the classes added to it. Samples of all other classes have the model's own numbers, to the bit."""

    def __init__(self, base: Method, banks: Sequence[AddedBank]) -> None:
        """``base`` is in its local form; it is not changed."""
        super().__init__()
        self.base = base
        self.settings = base.settings
        self.leaders, self.kernel_sizes = base.leaders, base.kernel_sizes
        self.modalities_joined = base.modalities_joined
        self.looks_at_class = base.looks_at_class
        self.banks = nn.ModuleList(banks)
        self.eval()

    @property
    def added(self) -> dict[str, AddedBank]:
        """By ``DATASET/CLASS``."""
        return {bank.class_name: bank for bank in self.banks if isinstance(bank, AddedBank)}

    def load_backbone(self) -> str:
        return self.base.load_backbone()

    def inference_form(self, cache_bytes: int) -> Self:
        self.base = self.base.inference_form(cache_bytes)
        return self.eval()

    def networks(self) -> list[nn.Module]:
        return self.base.networks()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "memory_format":  # of the networks, which are the base's
            self.base.memory_format = value

    def teacher_levels(self, images_TCHW: Tensor) -> list[Tensor] | None:
        return self.base.teacher_levels(images_TCHW)

    def own_levels(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> OwnLevels:
        return self.base.own_levels(images_TCHW, tokens_per_sample, slot_of_token_T)

    def loss(self, output: WithAdded, facts: StepFacts) -> Loss:
        """There is none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a model with added classes is for scoring alone")

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """The model's own, which is told no class and so knows none of those added."""
        return self.base.with_fixed_modalities(slots)

    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> WithAdded:
        """``classes``: as ``Fitted``'s."""
        added, names = self.added, list(classes or [None] * len(tokens_per_sample))
        added_at = tuple(place for place, name in enumerate(names) if name in added)
        base_at = tuple(place for place, name in enumerate(names) if name not in added)
        samples_T = sample_of_token(tokens_per_sample, torch.device("cpu"))
        base, maps_THW, places_T = None, None, None
        routings: Sequence[Sequence[Routing]] = ()
        if base_at:
            images, counts, slots = _of_samples(base_at, images_TCHW, tokens_per_sample, slot_of_token_T, samples_T)
            known = {"classes": [names[place] for place in base_at]} if isinstance(self.base, Fitted) else {}
            base = self.base(images, counts, slots, **known)
            routings = self.base.routings(base)
        if added_at:
            images, counts, slots = _of_samples(added_at, images_TCHW, tokens_per_sample, slot_of_token_T, samples_T)
            own = self.base.own_levels(images, counts, slots)
            # In a batch of both their tokens would stand in another order than the samples'.
            routings = () if base_at else own.routings
            places_T = sample_of_token(counts, torch.device("cpu"))
            maps_THW = self._added_maps(images, own, slots.tolist(), [names[added_at[p]] or "" for p in places_T])
            places_T = places_T.to(images.device)
        return WithAdded(base, base_at, maps_THW, added_at, places_T, tuple(tokens_per_sample), routings)

    def _added_maps(self, images_TCHW: Tensor, own: OwnLevels, slots_T: list[int], names_T: list[str]) -> Tensor:
        features = searched_levels(self.base, images_TCHW)
        maps_THW = features[0].new_zeros(len(images_TCHW), self.image_size, self.image_size)
        for name in dict.fromkeys(names_T):
            chosen_t = torch.tensor([token for token, other in enumerate(names_T) if other == name])
            chosen_t = chosen_t.to(images_TCHW.device)
            of_class = OwnLevels([level_Thw[chosen_t].float() for level_Thw in own.distances])
            slots_t = [slots_T[token] for token in chosen_t.tolist()]
            bank = self.added[name]
            maps_THW[chosen_t] = bank.token_maps(
                self.base, [level_TC[chosen_t] for level_TC in features], of_class, slots_t
            )
        return maps_THW

    def maps(self, output: WithAdded) -> Tensor:
        batch = len(output.base_at) + len(output.added_at)
        of_base = None if output.base is None else self.base.maps(output.base)
        if output.maps_THW is None or output.sample_of_token_T is None:
            assert of_base is not None, "there is a sample"
            return of_base
        of_added = sum_of_tokens(output.maps_THW, output.sample_of_token_T, len(output.added_at))
        if of_base is None:
            return of_added
        maps_BHW = of_added.new_empty(batch, *of_added.shape[1:])
        maps_BHW[list(output.base_at)], maps_BHW[list(output.added_at)] = of_base, of_added
        return maps_BHW

    def parts(self, output: WithAdded) -> Tensor | None:
        if type(self.base).parts is Method.parts:  # else an added class's would depend on what shares its batch
            return None
        of_base = None if output.base is None else self.base.parts(output.base)
        if output.maps_THW is None or (output.base is not None and of_base is None):
            return of_base
        if of_base is None:
            return output.maps_THW
        samples_T = sample_of_token(output.tokens_per_sample, torch.device("cpu"))
        is_added_T = torch.isin(samples_T, torch.tensor(output.added_at)).to(of_base.device)
        parts_THW = of_base.new_empty(len(samples_T), *of_base.shape[1:])
        parts_THW[is_added_T], parts_THW[~is_added_T] = output.maps_THW, of_base
        return parts_THW

    def routings(self, output: WithAdded) -> Sequence[Sequence[Routing]]:
        return output.routings


def _of_samples(
    chosen: Sequence[int],
    images_TCHW: Tensor,
    tokens_per_sample: Sequence[int],
    slot_of_token_T: Tensor,
    samples_T: Tensor,
) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Some samples' images, counts and slots; of all samples what was given."""
    if len(chosen) == len(tokens_per_sample):
        return images_TCHW, tuple(tokens_per_sample), slot_of_token_T
    tokens_t = torch.isin(samples_T, torch.tensor(chosen)).nonzero()[:, 0].to(images_TCHW.device)
    return images_TCHW[tokens_t], tuple(tokens_per_sample[place] for place in chosen), slot_of_token_T[tokens_t]
