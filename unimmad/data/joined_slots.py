"""One input slot for one modality's name, in all datasets that a model meets.

A dataset numbers its modalities by itself: depth alone has slot 0, depth beside RGB slot 1. A model that trained on
both as they are would take the two for different sensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unimmad.data.index import DatasetEntry


def joined_by_name(
    datasets: Mapping[str, DatasetEntry], known: Mapping[str, DatasetEntry] | None = None
) -> dict[str, DatasetEntry]:
    """The datasets with slots that go by name.

    A name keeps the slot that it has in the first dataset that has it. Where another modality of its dataset is there
    already, it takes the lowest one that is free in all its datasets.

    Args:
        datasets: by name, as their indexes say.
        known: those that a model was trained on: their slots stay whatever they are, and decide first.

    Raises:
        ValueError: a model was trained with one name on several slots (before slots went by name), and a dataset that
            it has not seen uses that name; or it was trained with two names on one slot, each in datasets without the
            other, and a dataset has both.
    """
    trained = known or {}
    slot_of: dict[str, int] = {}
    for entry in trained.values():
        for modality in entry.modalities:
            slot_of.setdefault(modality.name, modality.slot)
    _check_one_slot({name: entry for name, entry in datasets.items() if name not in trained}, trained)
    for entry in datasets.values():
        for modality in entry.modalities:
            if modality.name not in slot_of:
                slot_of[modality.name] = _free_slot(modality.name, modality.slot, slot_of, datasets.values())
    joined = {name: _with_slots(entry, trained.get(name), slot_of) for name, entry in datasets.items()}
    _check_apart(joined)
    return joined


def named_apart(datasets: Mapping[str, DatasetEntry], known: Mapping[str, DatasetEntry]) -> dict[str, DatasetEntry]:
    """Those of the datasets that ``known`` lacks, in which each name that ``known`` lacks has a slot of its own: the
    lowest one that no other name has. Where nothing is known, none: the datasets' own slots serve.

    A model that learns on must not take a new sensor for one that it knows.
    """
    slot_of = {modality.name: modality.slot for entry in known.values() for modality in entry.modalities}
    taken = {modality.slot for entry in known.values() for modality in entry.modalities}
    if not known:
        return {}
    apart = {}
    for dataset, entry in datasets.items():
        for modality in entry.modalities:
            if modality.name not in slot_of:
                slot_of[modality.name] = min(set(range(len(taken) + 1)) - taken)
                taken.add(slot_of[modality.name])
        if dataset not in known:
            apart[dataset] = _with_slots(entry, None, slot_of)
    return apart


def _free_slot(name: str, wanted: int, slot_of: Mapping[str, int], datasets: Iterable[DatasetEntry]) -> int:
    beside = {
        other.name
        for entry in datasets
        if any(modality.name == name for modality in entry.modalities)
        for other in entry.modalities
    }
    taken = {slot_of[other] for other in beside if other in slot_of}
    return wanted if wanted not in taken else min(set(range(len(taken) + 1)) - taken)


def _with_slots(entry: DatasetEntry, trained: DatasetEntry | None, slot_of: Mapping[str, int]) -> DatasetEntry:
    own = {modality.name: modality.slot for modality in trained.modalities} if trained is not None else {}
    slots = {modality.name: own.get(modality.name, slot_of[modality.name]) for modality in entry.modalities}
    if all(slots[modality.name] == modality.slot for modality in entry.modalities):
        return entry
    moved = [modality.model_copy(update={"slot": slots[modality.name]}) for modality in entry.modalities]
    return entry.model_copy(update={"modalities": tuple(sorted(moved, key=lambda modality: modality.slot))})


def _check_apart(datasets: Mapping[str, DatasetEntry]) -> None:
    for dataset, entry in datasets.items():
        name_of: dict[int, str] = {}
        for modality in entry.modalities:
            other = name_of.setdefault(modality.slot, modality.name)
            if other != modality.name:
                raise ValueError(
                    f"dataset {dataset} has {other} and {modality.name}, both of which the model was trained with in "
                    f"slot {modality.slot}, each in datasets without the other: it can't be given both; train with "
                    "this dataset, too"
                )


def _check_one_slot(new: Mapping[str, DatasetEntry], trained: Mapping[str, DatasetEntry]) -> None:
    slots: dict[str, dict[int, str]] = {}
    for dataset, entry in trained.items():
        for modality in entry.modalities:
            slots.setdefault(modality.name, {}).setdefault(modality.slot, dataset)
    for dataset, entry in new.items():
        for modality in entry.modalities:
            if len(places := slots.get(modality.name, {})) > 1:
                said = " and ".join(f"slot {slot} in {of}" for slot, of in places.items())
                raise ValueError(
                    f"dataset {dataset} has {modality.name}, which the model was trained with in {said}: nobody can "
                    f"say which it is; name the dataset as the one it is like, or train again"
                )
