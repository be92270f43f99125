"""Banks of patches of normal images: which are kept, and how far other patches are from the nearest of them.

Each class and modality has a bank of its own, or one a modality serves all classes. All banks hold one kind of
features. Features and distances are float32 whatever autocast says, since banks are compared with what is made later.

Letters: T tokens (sample, modality), N patches of a bank, P patches of an image, D features of a patch, h x w
positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from unimmad.config.fields import NotNegative, Positive, Real, Section
from unimmad.methods.coreset import greedy_coreset, hash_of_key, projected, random_start_points, rows_to_keep
from unimmad.methods.nearest import nearest_neighbours, nearest_of_others, neighbours_of_block
from unimmad.methods.patch_collection import BankName, PatchCollection, RandomChoice, check_size
from unimmad.model.method import Fitted, Gather

LEAST_DEVIATION = 1e-3
"""A feature's standard deviation counts as this share of all features' mean one at least."""

ROUNDING = 1e-3
"""And as this share of the features' root mean square at least, where distances are divided by the usual one."""
LEAST_APART = 0.05
"""What is usual is at least this share of how far patches lie from their mean, which is the root of D once each feature
is divided by its deviation. Patches of different photographs are some ten times as far apart."""

Scaling = Literal["none", "deviation", "normal"]
"""What a bank's features are divided by: nothing; each by its standard deviation over the patches that the bank is
chosen from; or by that and one number more, such that the bank's patches lie on average at distance 1 from the nearest
one of another image."""


class BankSettings(Section):
    """What is kept, and how it is searched. PatchCore's published choice by default."""

    coreset: Literal["none", "random", "greedy", "approximate"] = "approximate"
    """Which patches of the training images a bank keeps: all, a random choice, or PatchCore's greedy one, by distances
    to all patches or, for a start, to some. Only with ``random`` are the others forgotten as soon as they are seen."""
    coreset_share: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """The share of its patches that a bank keeps (``random``: about so many; ``none``: all, whatever it says)."""
    patches: Positive | None = None
    """What a bank keeps at most, where that is less."""
    projection_dim: Positive = 128
    """Dimensions that the greedy choices measure distances in."""
    start_points: Positive = 10
    """Of the approximate choice."""
    neighbours: Positive = 1
    """A patch's score is the mean of its distances to so many."""
    distance: Literal["squared", "root"] = "squared"
    """The squared Euclidean distance, or its root."""
    bank_per: Literal["class", "all"] = "class"
    """A bank of its own for each class and modality, or one a modality for all classes. Where a sample's class is not
    known, each of its images is scored by the class whose bank gives it the smallest mean."""
    max_bank_gb: Annotated[Real, Field(gt=0)] = 8.0
    """What all banks may take together, and before them the patches that they are chosen from, of all processes as of
    each, in units of 10^9 bytes. While the banks are made, twice as much is needed."""

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.coreset == "none" and self.patches is not None:
            raise ValueError("patches: a bank of all patches (coreset: none) has no limit; set coreset: random")
        return self


class _Description(Section):
    """What banks are kept, in the order of their tensors."""

    banks: tuple[tuple[str, NotNegative], ...]


class Banks(nn.Module):
    """They are made of patches that are added one image after the other, on any rank, in any order."""

    def __init__(self, settings: BankSettings, features: int, slots: int, scaling: Scaling) -> None:
        """No banks yet.

        Args:
            settings: what is kept.
            features: D.
            slots: how many modality slots there are.
            scaling: what features are divided by.
        """
        super().__init__()
        self.bank_settings = settings
        self.features = features
        self.slots = slots
        self.scaling = scaling
        self.names: list[BankName] = []
        """Whose patches each bank holds."""
        self.banks = nn.ParameterList()
        """[N, D] each."""
        self.deviations = nn.ParameterList()
        """What each bank's features were divided by, [D] each; none where ``scaling`` is."""
        self.owners: list[Tensor] = []
        """Which photograph each row of a bank is of, int64 [N] by ``hash_of_key``; known where they were made alone."""
        self.left_out: int | None = None
        """Hash of a photograph that counts as if it were in no bank."""
        self.taken: set[str] = set()
        """Rows that were appended since, by what they are known by."""
        self._anchor: Tensor
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        self.begin(0)

    @property
    def is_fitted(self) -> bool:
        """Whether there are banks."""
        return bool(self.names)

    def begin(self, seed: int, adding: bool = False) -> None:
        """Forget what was added; what is chosen at random from now on follows from ``seed``. With ``adding`` the banks
        that are there stay, and those of other classes come to them.

        Raises:
            ValueError: one bank holds all classes, so that none can be added.
        """
        if adding and self.bank_settings.bank_per == "all":
            raise ValueError(
                "one bank holds all classes (bank_per: all), so that none can be added: fit to all data again"
            )
        self._seed = seed % 2**63
        self._adding = adding
        self._collection = self._new_collection()

    def add(
        self, names: Sequence[BankName], keys: Sequence[str], patches_TPD: Tensor, views: Sequence[int] | None = None
    ) -> None:
        """Take in the patches of T images, each of which ``names`` gives to a bank.

        Args:
            names: whose.
            keys: the photograph of each.
            patches_TPD: their patches.
            views: which view of its photograph each is; None: the only one.

        Raises:
            ValueError: what is kept would take more memory than the settings allow.
        """
        for patches_PD, name, key, view in zip(patches_TPD, names, keys, views or [0] * len(keys), strict=True):
            self._collection.add(name, patches_PD, key, view)

    @torch.no_grad()
    def finish(self, gather: Gather) -> None:
        """Make the banks of what all ranks added, on rank 0, and forget that; collective.

        Raises:
            ValueError: on rank 0: there are no samples, too few patches, too many, or a sample came twice.
        """
        collected = self._collection.gathered(gather)
        self._collection = self._new_collection()
        new_names = list(collected)
        if self._adding:
            self.owners = [torch.empty(0, dtype=torch.int64, device=self.device) for _ in self.names]
            self.names += new_names
        else:
            self._name_banks(new_names)
        for name in new_names:
            patches = collected.pop(name)
            rows_ND = patches.rows_ND.to(self.device)
            self._check_rows(name, len(rows_ND))
            deviation_D = None if self.scaling == "none" else _deviation(rows_ND)
            if deviation_D is not None:
                if self.scaling == "normal":  # where no feature varies there is rounding
                    deviation_D = deviation_D.clamp_min(ROUNDING * rows_ND.square().mean().sqrt())
                rows_ND = rows_ND / deviation_D
            chosen = self._choice(rows_ND)
            bank_ND, owner_of_N = rows_ND[chosen], patches.marks_N3[:, 0].to(self.device)[chosen]
            self._check_rows(name, len(bank_ND))
            self.owners.append(owner_of_N)
            if deviation_D is not None and self.scaling == "normal":
                apart = self._normal_score(bank_ND, owner_of_N)
                bank_ND, deviation_D = bank_ND / apart, deviation_D * apart
            self.banks.append(_frozen(bank_ND))
            if deviation_D is not None:
                self.deviations.append(_frozen(deviation_D))
        self.check_room(0)  # with the banks that were there before

    def _normal_score(self, bank_ND: Tensor, image_of_N: Tensor) -> Tensor:
        """What the bank's patches would score if they were of a photograph that is not in it, in the mean; where there
        is but one, each if it were not in it: a scalar. Where photographs are alike to the pixel that would be
        rounding."""
        same_image = bool((image_of_N == image_of_N[0]).all())
        owner_of_N = torch.arange(len(bank_ND), device=bank_ND.device) if same_image else image_of_N
        distances_Nk = nearest_of_others(bank_ND, owner_of_N, self.bank_settings.neighbours).sqrt()
        return distances_Nk.mean().clamp_min(LEAST_APART * self.features**0.5)

    def describe(self) -> dict[str, Any]:
        """See ``Fitted``."""
        return {"banks": [list(name) for name in self.names]}

    def restore(self, description: Mapping[str, Any]) -> None:
        """See ``Fitted``."""
        try:
            names = [BankName(*bank) for bank in _Description.model_validate(description).banks]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"this describes no memory bank: {where}: {first['msg']}") from None
        if len(set(names)) < len(names):
            raise ValueError("this describes no memory bank: it has two banks of one class and slot")
        for name in names:
            self._check_name(name)
        self._name_banks(names)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """See ``Fitted``."""
        bank_shapes = _numbered(shapes, "banks", len(self.names))
        for name, shape in zip(self.names, bank_shapes, strict=True):
            if len(shape) != 2 or shape[1] != self.features:
                raise ValueError(
                    f"a memory bank has the shape {list(shape)}, not [patches, {self.features}]: it was made of "
                    "other features than the recipe's"
                )
            self._check_rows(name, shape[0])
        scaled = self.scaling != "none"
        deviation_shapes = _numbered(shapes, "deviations", len(self.names) if scaled else 0)
        if any(shape != (self.features,) for shape in deviation_shapes):
            raise ValueError(f"a memory bank's deviations are not [{self.features}]: other features than the recipe's")
        check_size(sum(shape[0] for shape in bank_shapes), self.features, self.bank_settings.max_bank_gb)
        self.banks = nn.ParameterList(_frozen(torch.zeros(shape, device=self.device)) for shape in bank_shapes)
        self.deviations = nn.ParameterList(_frozen(torch.ones(shape, device=self.device)) for shape in deviation_shapes)

    def forget(self, classes: Sequence[str]) -> None:
        """See ``Fitted``."""
        kept = [number for number, name in enumerate(self.names) if name.class_name not in classes]
        self.names, self.owners = [self.names[number] for number in kept], []
        self.banks = nn.ParameterList(self.banks[number] for number in kept)
        if len(self.deviations):
            self.deviations = nn.ParameterList(self.deviations[number] for number in kept)

    def is_fitted_to(self, class_name: str) -> bool:
        """See ``Fitted``."""
        return any(name.class_name == class_name for name in self.names)

    def scores(self, patches_thwD: Tensor, number: int) -> Tensor:
        """How far patches are from those of one bank: [t, h, w]."""
        among_N, neighbours = None, self._neighbours(number)
        if self.left_out is not None:
            among_N = self._rows_of_others(number)
            neighbours = min(neighbours, int(among_N.sum()))
        with torch.autocast(patches_thwD.device.type, enabled=False):
            queries_nD = self._queries(patches_thwD, number)
            distances_nk, _ = nearest_neighbours(queries_nD, self.banks[number], neighbours, among_m=among_N)
        return self._of_distances(distances_nk).unflatten(0, patches_thwD.shape[:3])

    def take_owners(self, made: Fitted | Banks) -> None:
        """See ``Fitted``."""
        assert isinstance(made, Banks)
        self.owners = [owner_of_N.to(self.device) for owner_of_N in made.owners]

    @contextmanager
    def leave_out(self, photograph: str) -> Iterator[None]:
        """See ``Fitted``; what would leave nothing of a bank leaves it whole."""
        self.left_out = hash_of_key(photograph)
        try:
            yield
        finally:
            self.left_out = None

    def has_others(self, class_name: str) -> bool:
        """See ``Fitted``."""
        of_class = [number for number, name in enumerate(self.names) if name.class_name in ("", class_name)]
        return bool(of_class and self.owners) and all(map(self.has_other_rows, of_class))

    def has_other_rows(self, number: int) -> bool:
        """Whether a bank has patches of photographs that are not left out."""
        return bool(self._is_others(number).any())

    def _rows_of_others(self, number: int) -> Tensor:
        kept_N = self._is_others(number)
        return kept_N if kept_N.any() else ~kept_N

    def _is_others(self, number: int) -> Tensor:
        owner_of_N = self.owners[number]
        return owner_of_N >= 0 if self.left_out is None else owner_of_N != self.left_out

    @torch.no_grad()
    def lacking_rows(self, patches_PD: Tensor, number: int, most: int) -> Tensor:
        """The patches of an image that one bank lacks most: the farthest from it and from those chosen before, again
        and again, as the greedy choice goes; ``most`` at most, and none that it has already: float32 [n, D], as its
        rows are. None for a bank of fewer patches than ``neighbours``: with more of them in the mean a distance could
        get larger."""
        if len(self.banks[number]) < self.bank_settings.neighbours:
            return self.banks[number][:0]
        with torch.autocast(patches_PD.device.type, enabled=False):
            rows_PD = self._queries(patches_PD[None, None].float(), number)
            nearest_P = nearest_neighbours(rows_PD, self.banks[number], 1)[0][:, 0]
            chosen: list[int] = []
            while len(chosen) < min(most, len(rows_PD)) and nearest_P.max() > 0:
                chosen.append(int(nearest_P.argmax()))
                nearest_P = torch.minimum(nearest_P, (rows_PD - rows_PD[chosen[-1]]).square().sum(1))
                nearest_P[chosen[-1]] = 0
        return rows_PD[chosen]

    def append(self, number: int, rows_nD: Tensor) -> None:
        """More rows for one bank, as ``lacking_rows`` gives them. What features are divided by stays, so that no patch
        is farther from the bank than before.

        Raises:
            ValueError: they are of other features, or all banks would take more memory than the settings allow.
        """
        if rows_nD.ndim != 2 or rows_nD.shape[1] != self.features:
            raise ValueError(f"rows of the shape {list(rows_nD.shape)} are none of {self.features} features")
        self.check_room(len(rows_nD))
        self.banks[number] = _frozen(torch.cat([self.banks[number], rows_nD.to(self.banks[number])]))

    def check_room(self, rows: int) -> None:
        """
        Raises:
            ValueError: with so many more all banks would take more memory than the settings allow.
        """
        check_size(sum(map(len, self.banks)) + rows, self.features, self.bank_settings.max_bank_gb)

    def _neighbours(self, number: int) -> int:
        """How many patches of a bank are asked for; all where it has fewer and its scores are over usual ones."""
        return min(self.bank_settings.neighbours, len(self.banks[number]))

    def traced_scores(self, patches_thwD: Tensor, number: int) -> Tensor:
        """As ``scores``, in plain operations that can be traced for any number of images."""
        queries_nD, bank_ND = self._queries(patches_thwD, number), self.banks[number]
        neighbours = self._neighbours(number)
        distances_nk, _ = neighbours_of_block(queries_nD, bank_ND, bank_ND.square().sum(1), neighbours)
        return self._of_distances(distances_nk).unflatten(0, patches_thwD.shape[:3])

    @property
    def device(self) -> torch.device:
        """Where the banks are, and what is compared with them must be."""
        return self._anchor.device

    def _new_collection(self) -> PatchCollection:
        settings = self.bank_settings
        at_random = RandomChoice(settings.coreset_share, settings.patches) if settings.coreset == "random" else None
        return PatchCollection(self.features, self._seed, at_random, settings.max_bank_gb)

    def _name_banks(self, names: Sequence[BankName]) -> None:
        """There are these banks from now on, all still empty."""
        self.names, self.owners, self.taken = list(names), [], set()
        self.banks, self.deviations = nn.ParameterList(), nn.ParameterList()

    def _choice(self, rows_ND: Tensor) -> Tensor | slice:
        """The rows that a bank keeps."""
        settings = self.bank_settings
        if settings.coreset in ("none", "random"):  # the random choice is made while they are collected
            return slice(None)
        generator = torch.Generator().manual_seed(self._seed)
        rows_Nd = projected(rows_ND, settings.projection_dim, generator)
        count = rows_to_keep(len(rows_ND), settings.coreset_share, settings.patches)
        if settings.coreset == "greedy":
            return greedy_coreset(rows_Nd, count)
        return greedy_coreset(rows_Nd, count, random_start_points(len(rows_ND), settings.start_points, generator))

    def _queries(self, patches_thwD: Tensor, number: int) -> Tensor:
        """As the bank's rows are: [n, D]."""
        queries_nD = patches_thwD.flatten(0, 2)
        return queries_nD / self.deviations[number] if len(self.deviations) else queries_nD

    def _of_distances(self, distances_nk: Tensor) -> Tensor:
        """From squared distances: [n]."""
        return (distances_nk.sqrt() if self.bank_settings.distance == "root" else distances_nk).mean(1)

    def banks_to_search(self, class_name: str | None, slot: int) -> list[int]:
        """The bank of a class and slot; of every class where it is not known.

        Raises:
            ValueError: there is none.
        """
        if class_name is None and self.bank_settings.bank_per == "class":
            found = [number for number, name in enumerate(self.names) if name.slot == slot]
        else:
            wanted = self.bank_name(class_name or "", slot)
            found = [number for number, name in enumerate(self.names) if name == wanted]
        if not found:
            whose = f"class {class_name!r}" if class_name and self.bank_settings.bank_per == "class" else "any class"
            known = sorted({name.class_name for name in self.names if name.class_name and name.slot == slot})
            raise ValueError(
                f"there is no memory bank of {whose} for modality slot {slot}; fit it to normal samples that have that "
                f"modality{', or name one of ' + ', '.join(known) if known else ''}"
            )
        return found

    def bank_name(self, class_name: str, slot: int) -> BankName:
        """Where the patches of a class and slot go.

        Raises:
            ValueError: there can't be such a bank.
        """
        name = BankName("" if self.bank_settings.bank_per == "all" else class_name, slot)
        self._check_name(name)
        return name

    def _check_name(self, name: BankName) -> None:
        if not 0 <= name.slot < self.slots:
            raise ValueError(f"modality slot {name.slot} is not one of the {self.slots} of model.modality_slots")
        if (self.bank_settings.bank_per == "all") != (name.class_name == ""):
            raise ValueError(
                f"a memory bank of class {name.class_name!r} is none of bank_per={self.bank_settings.bank_per}"
            )

    def _check_rows(self, name: BankName, rows: int) -> None:
        if rows < (1 if self.scaling == "normal" else self.bank_settings.neighbours):
            raise ValueError(
                f"the memory bank of class {name.class_name!r}, slot {name.slot}, has {rows} patches, fewer than "
                f"neighbours, {self.bank_settings.neighbours}: keep more, by coreset_share or patches"
            )


def _deviation(rows_ND: Tensor) -> Tensor:
    """Each feature's standard deviation: [D]."""
    deviation_D = rows_ND.std(0, correction=0)
    # A feature that hardly varies would drown all others.
    return _or_1(deviation_D.clamp_min(LEAST_DEVIATION * deviation_D.mean()))


def _or_1(divisor: Tensor) -> Tensor:
    """1 where it is 0, or too small to divide by."""
    return torch.where(divisor < torch.finfo(divisor.dtype).tiny, 1.0, divisor)


def of_nearer_bank(first_thw: Tensor, second_thw: Tensor) -> Tensor:
    """Of each image the scores whose mean is smaller."""
    return torch.where((second_thw.mean((1, 2)) < first_thw.mean((1, 2)))[:, None, None], second_thw, first_thw)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _numbered(shapes: Mapping[str, tuple[int, ...]], prefix: str, count: int) -> list[tuple[int, ...]]:
    """The shapes of ``prefix.0`` and so on.

    Raises:
        ValueError: they are more or fewer than ``count``.
    """
    found = {name for name in shapes if name.startswith(f"{prefix}.")}
    wanted = [f"{prefix}.{number}" for number in range(count)]
    if found != set(wanted):
        raise ValueError(f"{len(found)} tensors {prefix}.* do not belong to {count} memory banks; the file is damaged")
    return [tuple(shapes[name]) for name in wanted]
