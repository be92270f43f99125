"""What a checkpoint was trained on, in its state.json: so that it can be used away from the shards."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimmad.data.index import ClassName, DatasetEntry, Name, SampleEntry
from unimmad.serialization.validation import first_problem

KEY = "trained_on"
"""In state.json."""
_MARK_BYTES = 6
"""Of a sample's mark: of a million samples and another million hardly one is taken for another."""
Marks = Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{8})*$")]
"""Marks of samples, one after the other, in base64."""


class _Entry(BaseModel):
    """As it stands in state.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    datasets: dict[Name, DatasetEntry]
    classes: tuple[ClassName, ...]
    digests: dict[ClassName, str] = {}
    samples: dict[ClassName, Marks] = {}


@dataclass(frozen=True)
class TrainedOn:
    """Classes that training drew from, and their datasets with modalities, slots and kinds."""

    datasets: dict[str, DatasetEntry]
    classes: tuple[str, ...]
    """``DATASET/CLASS``."""
    digests: dict[str, str]
    """Of each class's training samples; older checkpoints have none."""
    samples: dict[str, str] = field(default_factory=dict)
    """Each class's training samples, by marks; older checkpoints have none."""

    @classmethod
    def of(cls, datasets: Mapping[str, DatasetEntry], classes: Mapping[str, Iterable[SampleEntry]]) -> TrainedOn:
        """The training samples by class and, of all ``datasets``, theirs."""
        used = {name.partition("/")[0] for name in classes}
        lines = {name: _lines(samples) for name, samples in classes.items()}
        return cls(
            {name: entry for name, entry in datasets.items() if name in used},
            tuple(classes),
            {name: _digest(of_class) for name, of_class in lines.items()},
            {name: _marks(of_class) for name, of_class in lines.items()},
        )

    def entry(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "datasets": {name: entry.model_dump(mode="json") for name, entry in self.datasets.items()},
            "classes": list(self.classes),
            "digests": self.digests,
            "samples": self.samples,
        }

    def seen(self, samples: Iterable[SampleEntry]) -> list[str]:
        """The keys of those that training saw in datasets of their names, whatever shards they are in now; of older
        checkpoints nobody can say."""
        marks = self._marks_of_datasets
        return [sample.key for sample in samples if _mark(_line(sample)) in marks.get(sample.dataset, ())]

    @cached_property
    def _marks_of_datasets(self) -> dict[str, set[bytes]]:
        marks: dict[str, set[bytes]] = {}
        for name, encoded in self.samples.items():
            joined = b64decode(encoded)
            of_class = (joined[at : at + _MARK_BYTES] for at in range(0, len(joined), _MARK_BYTES))
            marks.setdefault(name.partition("/")[0], set()).update(of_class)
        return marks

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
    return TrainedOn(entry.datasets, entry.classes, entry.digests, entry.samples)


def _line(sample: SampleEntry) -> str:
    """Of name and sizes alone: a copy elsewhere or in other shards is the same, and nothing is read."""
    return " ".join((sample.key, *(f"{name}:{member.length}" for name, member in sorted(sample.images.items()))))


def _lines(samples: Iterable[SampleEntry]) -> list[str]:
    return sorted(map(_line, samples))


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _marks(lines: Iterable[str]) -> str:
    return b64encode(b"".join(map(_mark, lines))).decode()


def _mark(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()[:_MARK_BYTES]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
