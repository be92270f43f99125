"""What ``unimmad grow`` adds to a training: which checkpoint it begins with, and which samples of old classes it sees.

A share of the old training samples is seen again beside all new ones. Which they are follows from seed and class alone,
and at which positions they stand from the order rule, by which half of the draws are of new classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unimmad.checkpoint.digests import DIGESTS_NAME
from unimmad.checkpoint.folder import STATE_NAME, read_state
from unimmad.checkpoint.state import GROWTH
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.data.index import DatasetEntry
from unimmad.data.joined_slots import named_apart
from unimmad.data.location import DataFolder
from unimmad.data.reading.counter_rng import Purpose, counter_rng
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_files import SampleRef, check_names
from unimmad.data.reading.shard_set import ShardSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Growth:
    """What a user asked for."""

    source: Path
    """The checkpoint that grows."""
    old_data: tuple[DataFolder, ...]
    """Shards of what it was trained on, or of part of it; may be none."""
    replay_fraction: float
    """Share of the old training samples that are seen again, of each class one at least; 0: none."""
    distillation: float
    """Weight in the loss of staying with what the old leaders and gates say of the same images; 0: none."""
    new_leaders: int = 0
    new_banks: int = 0
    """Banks of base kernels that come in with them."""
    replace: bool = False
    """Whether new data may be of classes that the checkpoint knows."""
    max_forgetting: float | None = None
    """What an old class may lose of its I-AUROC at most; None: any."""

    @cached_property
    def trained_on(self) -> TrainedOn | None:
        """Of the checkpoint; None where it does not say.

        Raises:
            ValueError: it can't be read.
        """
        return read_trained_on(read_state(self.source), str(self.source / STATE_NAME))

    @property
    def datasets(self) -> dict[str, DatasetEntry]:
        """Those that the checkpoint was trained on, with their slots."""
        return {} if self.trained_on is None else self.trained_on.datasets

    @cached_property
    def source_digest(self) -> str:
        """By which the checkpoint is known; it is read once.

        Raises:
            ValueError: the checkpoint is no longer there.
        """
        for name in (DIGESTS_NAME, STATE_NAME):
            if (known_by := self.source / name).is_file():
                return hashlib.sha256(known_by.read_bytes()).hexdigest()
        raise ValueError(f"--checkpoint {self.source} is no longer there: give one that is")

    def facts(self, replayed: str) -> dict[str, Any]:
        """What a run that is continued must have been begun with, in JSON's types.

        Args:
            replayed: ``GrowingData.replayed``.
        """
        return {
            "from": self.source_digest,
            "replay_fraction": self.replay_fraction,
            "distillation": self.distillation,
            "new_leaders": self.new_leaders,
            "new_banks": self.new_banks,
            "replayed": replayed,
        }


def check_same_growth(checkpoint: Path, ours: Mapping[str, Any] | None) -> None:
    """
    Args:
        checkpoint: to continue.
        ours: what it must have been begun with, ``Growth.facts``; None: by ``unimmad train``.

    Raises:
        ValueError: the checkpoint to continue was begun by ``unimmad grow`` in another way, or not by it, or was by it
            and ``ours`` is None.
    """
    theirs = read_state(checkpoint).get(GROWTH)
    if theirs == ours:
        return
    if not isinstance(theirs, dict) or ours is None:
        begun, other = ("grow", "train") if ours is None else ("train", "grow")
        raise ValueError(
            f"{checkpoint} was begun by unimmad {begun}, not by unimmad {other}: use that, or another --output-dir"
        )
    key = next(key for key in ours if theirs.get(key) != ours[key])
    if key == "replayed":
        raise ValueError(
            f"{checkpoint} was begun with other old images to see again: give the same --old-data, another "
            "--output-dir, or --resume never"
        )
    option = "--checkpoint" if key == "from" else f"--{key.replace('_', '-')}"
    was = "another one" if key == "from" else theirs.get(key)
    raise ValueError(
        f"{checkpoint} was begun with {option} {was}; use it again, another --output-dir, or --resume never"
    )


@dataclass(frozen=True)
class GrowingData:
    """The samples of a growing run."""

    shards: ShardSet
    """New classes whole; of old ones the training samples that are replayed, and all others."""
    new: tuple[str, ...]
    """``DATASET/CLASS``."""
    old: tuple[str, ...]
    """Those of which ``shards`` have anything."""
    trained_on: TrainedOn
    """Of the checkpoint and of the new classes; where the checkpoint does not say, of all in ``shards``."""
    recorded: tuple[DataFolder, ...]
    """Those that can be read together later; without old folders of which a class is replaced."""

    @cached_property
    def replayed(self) -> str:
        """SHA-256 of which old training samples are seen again."""
        old = {name: [ref.entry for ref in self.shards.classes("train").get(name, ())] for name in self.old}
        return hashlib.sha256(json.dumps(TrainedOn.of({}, old).digests, sort_keys=True).encode()).hexdigest()

    @property
    def weights(self) -> dict[str, int]:
        """Of each class in training, for half of the draws to be of new classes."""
        classes = self.shards.classes("train")
        old = sum(name not in self.new for name in classes)
        return {name: max(1, old) if name in self.new else len(self.new) for name in classes}

    def of_new(self) -> ShardSet:
        """The new classes alone."""
        return self.shards.those(lambda ref: ref.class_name in self.new)


def open_growing_data(growth: Growth, data: Sequence[DataFolder], cache: ShardCache, seed: int) -> GrowingData:
    """
    Raises:
        ValueError: as ``ShardSet.open``; the new data have a class that is known already (unless replaced), or a
            modality of another kind; or there is nothing to replay though that was asked for.
    """
    fresh = ShardSet.open(data, cache, growth.datasets)
    new = tuple(fresh.classes("train"))
    if not new:
        raise ValueError("--data: no training sample is new; growing needs normal samples in the split 'train'")
    seen = () if growth.trained_on is None else growth.trained_on.classes
    if not growth.replace and (again := [name for name in new if name in seen]):
        raise ValueError(
            f"--data: {growth.source} knows class {again[0]}{_more(again)} already: leave it out, or say --replace to "
            "train it on these images alone"
        )
    _check_kinds(growth.datasets, fresh.datasets)
    known = {**growth.datasets, **named_apart(fresh.datasets, growth.datasets)}
    fresh = ShardSet(fresh.folders, fresh.indexes, cache, known)
    old_data = [folder for folder in growth.old_data if folder not in data]
    recorded = [*old_data, *data]
    if growth.replace and old_data:
        shards, recorded = _joined(old_data, fresh, cache, known)
    else:
        shards = ShardSet.open(recorded, cache, known)
    first_new = len(old_data)
    old = [
        name
        for name, refs in {**shards.classes("train"), **shards.classes("test")}.items()
        if refs[0].folder < first_new and name not in new and (name in seen or not seen)
    ]
    replayed = replayed_samples(
        {name: shards.classes("train").get(name, ()) for name in old}, growth.replay_fraction, seed
    )
    if growth.replay_fraction and not replayed:
        raise ValueError(
            f"there is no old training sample to replay ({growth.source} was trained on {_listed(seen)}): give shards "
            "of these with --old-data DIR, or --replay-fraction 0"
        )
    if growth.max_forgetting is not None:
        _check_measurable(shards, [name for name in seen or old if name not in new])

    def wanted(ref: SampleRef) -> bool:
        if ref.folder >= first_new:
            return True
        chosen = ref.entry.split != "train" or (ref.entry.dataset, ref.entry.key) in replayed
        return ref.class_name in old and chosen

    named = new if growth.trained_on is not None else (*old, *new)
    trained_on = TrainedOn.of(
        shards.datasets,
        {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items() if name in named},
    )
    return GrowingData(
        shards.those(wanted), new, tuple(old), _joined_facts(growth.trained_on, trained_on), tuple(recorded)
    )


def replayed_samples(classes: Mapping[str, Sequence[SampleRef]], fraction: float, seed: int) -> set[tuple[str, str]]:
    """Dataset and key of those that are seen again: of each class its share, one at least, by seed and class alone."""
    if not fraction:
        return set()
    chosen: set[tuple[str, str]] = set()
    for name, refs in classes.items():
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        ranks_N = np.argsort(counter_rng(seed, Purpose.REPLAY, 0, number, len(refs)), kind="stable")
        count = min(len(refs), max(1, math.floor(fraction * len(refs) + 0.5)))
        chosen |= {(refs[place].entry.dataset, refs[place].entry.key) for place in ranks_N[:count]}
    return chosen


def _check_measurable(shards: ShardSet, old: Sequence[str]) -> None:
    """
    Raises:
        ValueError: an old class has no test images by which it could be seen to be forgotten.
    """
    tested = shards.classes("test")
    lacking = [name for name in old if len({ref.entry.anomalous for ref in tested.get(name, ())}) < 2]
    if lacking or not old:
        raise ValueError(
            "--max-forgetting: there are no test images, normal and anomalous, of "
            f"{_listed(lacking)}, which the checkpoint knows; give shards with some by --old-data, or leave it out"
        )


def _joined(
    old_data: Sequence[DataFolder], fresh: ShardSet, cache: ShardCache, known: Mapping[str, DatasetEntry]
) -> tuple[ShardSet, list[DataFolder]]:
    """Both, of which the old ones lose what is replaced; and those folders that lost nothing.

    Raises:
        ValueError: what is left of a dataset differs in modalities from the new one, or has keys of it.
    """
    new = fresh.classes("train")
    old = ShardSet.open(old_data, cache, known)
    left = old.those(lambda ref: ref.class_name not in new)
    whole = []
    for folder, before, after in zip(old.folders, old.indexes, left.indexes, strict=True):
        if len(after.samples) == len(before.samples):
            whole.append(folder)
        elif after.samples:
            logger.warning(
                "%s has a class that is replaced: the checkpoint does not name it among its data, so give "
                "its other classes in shards of their own where these are to be evaluated or seen again",
                folder,
            )
    folders, indexes = [*old.folders, *fresh.folders], [*left.indexes, *fresh.indexes]
    check_names(folders, indexes)
    return ShardSet(folders, indexes, cache, known), [*whole, *fresh.folders]


def _joined_facts(old: TrainedOn | None, new: TrainedOn) -> TrainedOn:
    if old is None:
        return new
    datasets = dict(old.datasets)
    for name, entry in new.datasets.items():  # classes may come into a dataset one after the other
        roi = {**datasets[name].roi, **entry.roi} if name in datasets else entry.roi
        datasets[name] = entry.model_copy(update={"roi": roi})
    return TrainedOn(
        datasets,
        tuple(dict.fromkeys((*old.classes, *new.classes))),
        {**old.digests, **new.digests},
        # Of a class that is replaced the weights that stay have seen the old images, too.
        {**old.samples, **{name: old.samples.get(name, "") + marks for name, marks in new.samples.items()}},
    )


def _check_kinds(known: Mapping[str, DatasetEntry], new: Mapping[str, DatasetEntry]) -> None:
    """
    Raises:
        ValueError: a modality is of another kind than the checkpoint's of its name, or a dataset that is known has
            others.
    """
    kinds = {m.name: (m.kind, dataset) for dataset, entry in known.items() for m in entry.modalities}
    for dataset, entry in new.items():
        for modality in entry.modalities:
            kind, where = kinds.get(modality.name, (modality.kind, ""))
            if kind != modality.kind:
                raise ValueError(
                    f"--data: dataset {dataset} has {modality.name} as {modality.kind}, and the checkpoint knows "
                    f"{modality.name} as {kind} (dataset {where}): write the shards again with --modality "
                    f"{modality.name}={kind}, or give the modality another name"
                )
        ours, theirs = ({m.name for m in of.modalities} for of in (entry, known.get(dataset, entry)))
        if ours != theirs:
            raise ValueError(
                f"--data: dataset {dataset} has the modalities {', '.join(sorted(ours))}, and the checkpoint knows it "
                f"with {', '.join(sorted(theirs))}: write the shards again with another --name"
            )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(names[:5]) + (_more(names[4:]) if len(names) > 5 else "")
        if names
        else "classes that it does not name"
    )
