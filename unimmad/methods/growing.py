"""Banks that grow after training: patches of images that somebody called normal are added to those of their class.

Rows are only ever added, and what distances are divided by stays, so that no token's distances, and with them no
score of an image whose class is named, get larger (without one, the class of the smallest mean scores it, and may
become another one). Where a drawn anomalies' discriminator multiplies the map that does not follow, and such banks are
left as they are.

Letters: T tokens (modalities of an image), P patches of an image, D features of a patch, n rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unimmad.methods.added_class import AddedBank, WithAddedClasses, searched_levels
from unimmad.methods.banks import Banks
from unimmad.methods.fitted_by_search import FittedBySearch
from unimmad.methods.level_search import LevelSearch
from unimmad.methods.memory_bank import MemoryBank
from unimmad.model.method import Method

ROWS_OF_IMAGE = 128
"""Patches of an image that a bank takes at most."""


class BankPlace(NamedTuple):
    """One of a model's banks."""

    added: str
    """``DATASET/CLASS`` of the added class that it belongs to; empty: the model's own."""
    level: int
    """Of the search's banks; 0 where there is one."""
    class_name: str
    """As in ``BankName``."""
    slot: int


def why_fixed(model: Method, class_name: str) -> str:
    """Why a class's banks can't grow, in words; empty where they can."""
    holder = _holder(model, class_name)
    if holder is None:
        return "the method has no memory bank"
    if isinstance(holder, LevelSearch) and holder.is_judged(class_name):
        return "its bank's distances are judged by a discriminator, which holds for the bank as it is"
    return ""


def lacking_rows(
    model: Method, class_name: str, views: Iterable[Tensor], slots: Sequence[int]
) -> list[tuple[BankPlace, Tensor]]:
    """What an image adds to the banks of its class: rows [n, D] for each bank that its tokens are compared with, chosen
    among the patches of all its views.

    Args:
        model: whose ``why_fixed`` is empty.
        class_name: ``DATASET/CLASS``.
        views: of the image, [T, C, H, W] each: normalised, on the model's device.
        slots: of each token's modality.

    Raises:
        ValueError: there is no bank for a slot.
    """
    holder = _holder(model, class_name)
    assert holder is not None, "asked before"
    own = _base(model)
    of_views = []
    for images_TCHW in views:
        if isinstance(holder, MemoryBank):
            of_views.append([holder.describe_patches(images_TCHW)])
            continue
        maps = own.maps_to_search(images_TCHW) if isinstance(own, FittedBySearch) else searched_levels(own, images_TCHW)
        of_views.append(list(holder.described_levels(maps)))
    added = class_name if _added(model, class_name) else ""
    levels = [holder] if isinstance(holder, MemoryBank) else holder.all_banks
    found = []
    for level, (banks, patches) in enumerate(zip(levels, zip(*of_views, strict=True), strict=True)):
        patches_TPD = torch.cat([patches_ThwD.flatten(1, 2) for patches_ThwD in patches], dim=1)
        for patches_PD, slot in zip(patches_TPD, slots, strict=True):
            (number,) = banks.banks_to_search(class_name, slot)
            rows_nD = banks.lacking_rows(patches_PD, number, ROWS_OF_IMAGE)
            if len(rows_nD):
                found.append((BankPlace(added, level, *banks.names[number]), rows_nD))
    return found


def why_full(model: Method, found: Iterable[tuple[BankPlace, Tensor]]) -> str:
    """Why the banks have no room for all of these rows, in words; empty where they have.

    Raises:
        ValueError: there is no such bank.
    """
    more = Counter[Banks]()
    for place, rows_nD in found:
        more[_bank_at(model, place)[0]] += len(rows_nD)
    try:
        for banks, rows in more.items():
            banks.check_room(rows)
    except ValueError as error:
        return str(error)
    return ""


def append_rows(model: Method, place: BankPlace, rows_nD: Tensor, once: str = "") -> None:
    """Let one bank grow.

    Args:
        model: whose bank it is.
        place: which.
        rows_nD: as ``lacking_rows`` gives them.
        once: what these rows are known by: a bank takes them in once; empty: however often it is called.

    Raises:
        ValueError: there is no such bank, or the rows do not fit it.
    """
    banks, number = _bank_at(model, place)
    if once in banks.taken:
        return
    banks.append(number, rows_nD)
    if once:
        banks.taken.add(once)


def bank_digest(model: Method, place: BankPlace) -> str:
    """Of an added class's bank, by which rows know what they were made for; empty of the model's own, whose weights
    are known."""
    bank = _added(model, place.added)
    if bank is None:
        return ""
    digest = hashlib.sha256()
    for deviations_D in bank.search.banks[0].deviations:
        digest.update(deviations_D.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _bank_at(model: Method, place: BankPlace) -> tuple[Banks, int]:
    """The banks of its level, and its number among them."""
    holder = _holder(model, place.added or place.class_name, of_added=bool(place.added))
    levels = [] if holder is None else [holder] if isinstance(holder, Banks) else holder.all_banks
    found = levels[place.level : place.level + 1]
    names = [] if not found else [tuple(name) for name in found[0].names]
    if (place.class_name, place.slot) not in names:
        raise ValueError(f"the model has no bank of {place.class_name or 'all classes'} at level {place.level}")
    return found[0], names.index((place.class_name, place.slot))


def _base(model: Method) -> Method:
    return model.base if isinstance(model, WithAddedClasses) else model


def _added(model: Method, class_name: str) -> AddedBank | None:
    return model.added.get(class_name) if isinstance(model, WithAddedClasses) else None


def _holder(model: Method, class_name: str, of_added: bool = True) -> LevelSearch | MemoryBank | None:
    """What has the banks that images of a class are compared with."""
    bank = _added(model, class_name) if of_added else None
    if bank is not None:
        return bank.search
    own = _base(model)
    if isinstance(own, MemoryBank):
        return own
    return own.search if isinstance(own, FittedBySearch) else None
