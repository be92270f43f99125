"""Evaluation with some of the modalities: the others are left out of the model's input and of its tokens.

A modality that is left out leaves zeros in its slot, as where a sample lacks it.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace

from unimmad.data.index import DatasetEntry, Index, SampleEntry, Split
from unimmad.data.reading.shard_set import ShardSet


def keep_modalities(
    shards: ShardSet, split: Split, names: Sequence[str], classes: Collection[str] | None = None
) -> ShardSet:
    """The samples of ``split`` with the modalities ``names`` only.

    Args:
        classes: ``DATASET/CLASS`` names to keep; None keeps all.

    Raises:
        ValueError: a name that no dataset has, or a sample with none of them.
    """
    _check_known(shards, names)
    wanted = frozenset(names)
    reduced = copy.copy(shards)
    reduced.indexes = tuple(_reduced(index, split, wanted, classes) for index in shards.indexes)
    used = {name for index in reduced.indexes for name in index.datasets}
    reduced.datasets = {name: _reduced_set(entry, wanted) for name, entry in shards.datasets.items() if name in used}
    return reduced


def classes_of_several(shards: ShardSet, split: Split) -> list[str]:
    """The classes whose samples have more than one modality among them."""
    return [
        class_name
        for class_name, refs in shards.classes(split).items()
        if len(frozenset().union(*(ref.entry.images for ref in refs))) > 1
    ]


def classes_by_modality(shards: ShardSet, split: Split) -> dict[str, tuple[str, ...]]:
    """For each modality: the classes that can be evaluated with it alone and have others beside it.

    Those are the classes all of whose samples have it, and some sample has another one.
    """
    found: dict[str, list[str]] = {
        modality.name: [] for entry in shards.datasets.values() for modality in entry.modalities
    }
    classes = shards.classes(split)
    for class_name in classes_of_several(shards, split):
        every = frozenset.intersection(*(frozenset(ref.entry.images) for ref in classes[class_name]))
        for name in found:
            if name in every:
                found[name].append(class_name)
    return {name: tuple(names) for name, names in found.items() if names}


def _check_known(shards: ShardSet, names: Sequence[str]) -> None:
    known = {modality.name for entry in shards.datasets.values() for modality in entry.modalities}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"no dataset has a modality {name!r}; {hint}")


def _reduced(index: Index, split: Split, wanted: frozenset[str], classes: Collection[str] | None) -> Index:
    samples = tuple(
        _reduced_sample(sample, wanted)
        for sample in index.samples
        if sample.split == split and (classes is None or f"{sample.dataset}/{sample.class_name}" in classes)
    )
    used = {sample.dataset for sample in samples}
    datasets = {name: _reduced_set(entry, wanted) for name, entry in index.datasets.items() if name in used}
    return index.model_copy(update={"samples": samples, "datasets": datasets})


def _reduced_sample(sample: SampleEntry, wanted: frozenset[str]) -> SampleEntry:
    images = {name: member for name, member in sample.images.items() if name in wanted}
    if not images:
        raise ValueError(
            f"class {sample.dataset}/{sample.class_name}: sample {sample.key} has {', '.join(sample.images)}, but none "
            f"of the modalities asked for ({', '.join(sorted(wanted))}); ask for one that it has, or leave its data "
            "set out"
        )
    return replace(sample, images=images)


def _reduced_set(entry: DatasetEntry, wanted: frozenset[str]) -> DatasetEntry:
    kept = tuple(modality for modality in entry.modalities if modality.name in wanted)
    return entry.model_copy(update={"modalities": kept})
