"""Finished classes of an interrupted evaluation: written one by one, found again by the same evaluation.

OUTPUT/.partial/DATASET-CLASS.json      fingerprint, result, scores, curves, usage; gone when the report is complete
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimmad.data.reading.shard_set import ShardSet
from unimmad.report.file_names import file_name
from unimmad.report.scored_class import ScoredClass, read_scored, scored_entry
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json

FOLDER = ".partial"


class PartialResults:
    """The finished classes of one evaluation, known by its fingerprint."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        """``output`` is where the report will be written."""
        self.folder = output / FOLDER
        self.fingerprint = fingerprint

    def load(self) -> dict[str, ScoredClass]:
        """Classes finished by the same evaluation, by ``DATASET/CLASS``; others are passed over."""
        contents = (_read(path) for path in sorted(self.folder.glob("*.json")))
        own = (_scored(content) for content in contents if content.get("fingerprint") == self.fingerprint)
        return {scored.class_name: scored for scored in own if scored is not None}

    def save(self, scored: ScoredClass) -> None:
        """Keep one class's numbers.

        Raises:
            ValueError: the folder can't be written to.
        """
        content = {"fingerprint": self.fingerprint, **scored_entry(scored)}
        write_text_aside(self.folder / f"{file_name(*scored.names)}.json", json.dumps(content))

    def remove(self) -> None:
        """Forget all finished classes, those of other evaluations too."""
        shutil.rmtree(self.folder, ignore_errors=True)


def evaluation_fingerprint(weights: str, shards: ShardSet, settings: Mapping[str, Any]) -> str:
    """A number for one evaluation: two have the same one only where they give the same results.

    Args:
        weights: the checkpoint's ``weights_digest``.
        shards: its indexes count, and by the sums in them the shards.
        settings: everything else that changes a number; of JSON's types.
    """
    facts = json.dumps([weights, settings, shards.digest()], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Empty where the file is not one of ours."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _scored(content: dict[str, Any]) -> ScoredClass | None:
    """None where an entry is missing or of another form: damaged, or of another version of this package."""
    try:
        return read_scored(content)
    except ValueError:
        return None
