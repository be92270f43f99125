"""What a checkpoint was trained on, in its state.json: so that it can be used away from the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unimmad.data.index import ClassName, DatasetEntry, Name, SampleEntry
from unimmad.serialization.validation import first_problem

KEY = "trained_on"
"""In state.json."""


class _Entry(BaseModel):
    """As it stands in state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: dict[Name, DatasetEntry]
    classes: tuple[ClassName, ...]
    digests: dict[ClassName, str] = {}


@dataclass(frozen=True)
class TrainedOn:
    """Classes that training drew from, and their datasets with modalities, slots and kinds."""

    datasets: dict[str, DatasetEntry]
    classes: tuple[str, ...]
    """``DATASET/CLASS``."""
    digests: dict[str, str]
    """Of each class's training samples; older checkpoints have none."""

    @classmethod
    def of(cls, datasets: Mapping[str, DatasetEntry], classes: Mapping[str, Iterable[SampleEntry]]) -> TrainedOn:
        """The training samples by class and, of all ``datasets``, theirs."""
        used = {name.partition("/")[0] for name in classes}
        return cls(
            {name: entry for name, entry in datasets.items() if name in used},
            tuple(classes),
            {name: _digest(samples) for name, samples in classes.items()},
        )

    def entry(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "datasets": {name: entry.model_dump(mode="json") for name, entry in self.datasets.items()},
            "classes": list(self.classes),
            "digests": self.digests,
        }

    def difference(self, given: TrainedOn) -> str:
        """What sets ``given`` data apart from these, in words, first things first; empty where nothing does."""
        if missing := sorted(set(self.classes) - set(given.classes)):
            return f"the data given lack class {missing[0]}{_more(missing)}"
        if added := sorted(set(given.classes) - set(self.classes)):
            return f"the data given have class {added[0]}{_more(added)}, which it has not seen"
        for name, entry in self.datasets.items():
            if name not in given.datasets or given.datasets[name].modalities != entry.modalities:
                return f"dataset {name} has other modalities"
        changed = sorted(name for name, digest in self.digests.items() if given.digests.get(name) != digest)
        return f"class {changed[0]}{_more(changed)} has other training samples" if changed else ""


def read_trained_on(state: Mapping[str, Any], origin: str) -> TrainedOn | None:
    """What a checkpoint's state says of it; None where the state does not: converted weights, older checkpoints.

    Raises:
        ValueError: the entry has another form; ``origin`` names the file.
    """
    if KEY not in state:
        return None
    try:
        entry = _Entry.model_validate(state[KEY])
    except ValidationError as error:
        raise ValueError(
            f"{origin}: {KEY} has another form ({first_problem(error)}); use another checkpoint of the run"
        ) from None
    return TrainedOn(entry.datasets, entry.classes, entry.digests)


def _digest(samples: Iterable[SampleEntry]) -> str:
    """Of names and sizes alone, in no order: a copy elsewhere or in other shards is the same, and nothing is read."""
    lines = sorted(
        " ".join((sample.key, *(f"{name}:{member.length}" for name, member in sorted(sample.images.items()))))
        for sample in samples
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
