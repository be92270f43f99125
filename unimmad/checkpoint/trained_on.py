"""What a checkpoint was trained on, in its state.json: so that it can be used away from the shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from unimmad.data.index import DatasetEntry

KEY = "trained_on"
"""In state.json."""


@dataclass(frozen=True)
class TrainedOn:
    """Classes that training drew from, and their data sets with modalities, slots and kinds."""

    datasets: dict[str, DatasetEntry]
    classes: tuple[str, ...]
    """``DATASET/CLASS``."""

    @classmethod
    def of(cls, datasets: Mapping[str, DatasetEntry], classes: Iterable[str]) -> TrainedOn:
        """``classes`` and, of all ``datasets``, theirs."""
        names = tuple(classes)
        used = {name.partition("/")[0] for name in names}
        return cls({name: entry for name, entry in datasets.items() if name in used}, names)

    def entry(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "datasets": {name: entry.model_dump(mode="json") for name, entry in self.datasets.items()},
            "classes": list(self.classes),
        }


def read_trained_on(state: Mapping[str, Any], origin: str) -> TrainedOn | None:
    """What a checkpoint's state says of it; None where the state does not: converted weights, older checkpoints.

    Raises:
        ValueError: the entry has another form; ``origin`` names the file.
    """
    if KEY not in state:
        return None
    try:
        entry = state[KEY]
        datasets = {str(name): DatasetEntry.model_validate(found) for name, found in entry["datasets"].items()}
        return TrainedOn(datasets, tuple(str(name) for name in entry["classes"]))
    except (AttributeError, KeyError, TypeError, ValidationError):
        raise ValueError(f"{origin}: {KEY} has another form; use another checkpoint of the run") from None
