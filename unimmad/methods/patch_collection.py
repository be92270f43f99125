"""Patches of training images, kept bank by bank until the banks are made of them.

What comes of it depends neither on the order in which samples came nor on the processes that saw them: every patch has
a place (its photograph's key, its view and position), and by it a random number.

Letters: N patches of a bank, P patches of an image, D features of a patch.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unimmad.methods.coreset import hash_of_key, random_order, view_key
from unimmad.model.method import Gather

LARGEST = 2**63 - 1
GB = 10**9


class BankName(NamedTuple):
    """Whose patches a bank holds."""

    class_name: str
    """Empty where one bank serves all classes."""
    slot: int
    """The modality's input slot."""


class RandomChoice(NamedTuple):
    """Which patches are kept of all that come: those with the smallest random numbers."""

    share: float
    """About this share of them."""
    most: int | None
    """No more than so many a bank."""


class Patches(NamedTuple):
    """Rows side by side with what they are known by."""

    rows_ND: Tensor
    """float32, on the CPU."""
    marks_N3: Tensor
    """int64: hash of the photograph's key, place in it (position, one view after the other), random number."""

    def take(self, chosen: Tensor) -> Patches:
        return Patches(self.rows_ND[chosen], self.marks_N3[chosen])


class PatchCollection:
    """What one process collects.

    Args:
        features: D.
        seed: of the random numbers.
        choice: what to keep; None: everything.
        max_gb: what may be kept in all, in units of 10^9 bytes.
    """

    def __init__(self, features: int, seed: int, choice: RandomChoice | None, max_gb: float) -> None:
        self.features = features
        self.seed = seed
        self.choice = choice
        self.max_gb = max_gb
        self._parts: dict[BankName, list[Patches]] = {}
        self._kept = 0

    def add(self, name: BankName, rows_PD: Tensor, key: str, view: int = 0) -> None:
        """Take in one view of the photograph ``key``; all views of all have P patches.

        Raises:
            ValueError: too much would be kept.
        """
        patches = len(rows_PD)
        marks_P3 = torch.stack(
            [
                torch.full((patches,), hash_of_key(key)),
                torch.arange(view * patches, (view + 1) * patches),
                random_order(hash_of_key(view_key(key, view)), patches, self.seed),
            ],
            dim=1,
        )
        parts = self._parts.setdefault(name, [])
        if self.choice is None or self.choice.most is None:
            parts.append(_share_of(Patches(rows_PD, marks_P3), 1.0 if self.choice is None else self.choice.share))
            self._kept += len(parts[-1].rows_ND)
        else:
            self._kept -= sum(len(part.rows_ND) for part in parts)
            parts[:] = [self._chosen(parts, rows_PD, marks_P3, self.choice)]
            self._kept += len(parts[0].rows_ND)
        check_size(self._kept, self.features, self.max_gb)

    def _chosen(self, kept: list[Patches], rows_PD: Tensor, marks_P3: Tensor, choice: RandomChoice) -> Patches:
        """What stays of what is kept and an image's patches."""
        full = bool(kept) and len(kept[0].rows_ND) == choice.most
        new = _share_of(
            Patches(rows_PD, marks_P3), choice.share, int(kept[0].marks_N3[:, 2].max()) if full else LARGEST
        )
        if not kept:
            return smallest(new, choice.most)
        return smallest(joined([kept[0], new]), choice.most) if len(new.rows_ND) else kept[0]

    def gathered(self, gather: Gather) -> dict[BankName, Patches]:
        """What all processes collected, sorted by bank and place, on rank 0 (elsewhere nothing); here it is forgotten.

        Raises:
            ValueError: on rank 0: too much in all, nothing, or a sample that came twice.
        """
        names = sorted(self._parts)
        parts = [self._parts.pop(name) for name in names]
        lines = "".join(json.dumps(name) + "\n" for name in names)
        counts = [sum(len(part.rows_ND) for part in of_name) for of_name in parts]
        contents = gather(
            {"names": torch.tensor(list(lines.encode()), dtype=torch.uint8), "counts": torch.tensor(counts).long()}
        )
        if contents:
            names_of_all = bytes(contents["names"].tolist()).decode().splitlines()
            check_size(self._rows_at_most(names_of_all, contents["counts"].tolist()), self.features, self.max_gb)
        none = Patches(torch.empty(0, self.features), torch.empty(0, 3, dtype=torch.long))
        held = joined([none, *(part for of_name in parts for part in of_name)])
        del parts  # now held twice
        of_all = gather(held._asdict())
        if not contents:
            return {}
        all_names = [BankName(*json.loads(line)) for line in bytes(contents["names"].tolist()).decode().splitlines()]
        if not all_names:
            raise ValueError("the memory bank is made of training samples, of which there are none")
        return self._by_bank(all_names, Patches(**of_all), contents["counts"].tolist())

    def _rows_at_most(self, names: list[str], counts: list[int]) -> int:
        """What the banks of all ranks come to."""
        of_bank = Counter[str]()
        for name, count in zip(names, counts, strict=True):
            of_bank[name] += count
        most = None if self.choice is None else self.choice.most
        return sum(count if most is None else min(count, most) for count in of_bank.values())

    def _by_bank(self, names: list[BankName], patches: Patches, counts: list[int]) -> dict[BankName, Patches]:
        """Each rank's banks lie one after the other."""
        split = zip(patches.rows_ND.split(counts), patches.marks_N3.split(counts), strict=True)
        parts: dict[BankName, list[Patches]] = {}
        for name, part in zip(names, split, strict=True):
            parts.setdefault(name, []).append(Patches(*part))
        most = None if self.choice is None else self.choice.most
        return {name: _in_order(smallest(joined(parts[name]), most), name) for name in sorted(parts)}


def _share_of(patches: Patches, share: float, largest: int = LARGEST) -> Patches:
    """On the CPU, those whose random number is in this share of all, and no larger than ``largest``."""
    wanted_N = patches.marks_N3[:, 2] <= min(largest, int(share * LARGEST) if share < 1 else LARGEST)
    return Patches(patches.rows_ND[wanted_N.to(patches.rows_ND.device)].cpu(), patches.marks_N3[wanted_N])


def joined(parts: list[Patches]) -> Patches:
    return Patches(torch.cat([part.rows_ND for part in parts]), torch.cat([part.marks_N3 for part in parts]))


def smallest(patches: Patches, most: int | None) -> Patches:
    """Those with the ``most`` smallest random numbers; None: all."""
    numbers_N = patches.marks_N3[:, 2]
    if most is None or len(numbers_N) <= most:
        return patches
    return patches.take(numbers_N.topk(most, largest=False).indices)


def check_size(rows: int, features: int, max_gb: float) -> None:
    """
    Raises:
        ValueError: so many rows are more than allowed.
    """
    size = 4 * rows * features / GB
    if size > max_gb:
        raise ValueError(
            f"the memory bank's {rows} patches take {size:.3g} GB, more than the setting max_bank_gb, {max_gb:g}: "
            "raise it, or keep fewer from the start: a smaller patches (of a class and modality), with coreset=random "
            "where the method has that setting"
        )


def _in_order(patches: Patches, name: BankName) -> Patches:
    """By place."""
    marks = patches.marks_N3.numpy()
    order = np.lexsort((marks[:, 1], marks[:, 0]))
    places = marks[order, :2]
    if (places[1:] == places[:-1]).all(1).any():
        raise ValueError(f"class {name.class_name!r}, slot {name.slot}: a sample was collected twice under one key")
    return patches.take(torch.from_numpy(order))
