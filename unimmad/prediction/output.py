"""What prediction leaves behind: JSON lines, heat maps, a table on screen.

OUTPUT/predictions.jsonl     one object a sample, in the order of the samples
OUTPUT/pictures/NAME.png     modalities, map, map over the first modality
OUTPUT/maps/NAME.npy         the map itself, float32, where asked for
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from unimmad.evaluation.drawing import colour_limits
from unimmad.evaluation.thresholds import Thresholds
from unimmad.files import write_aside, write_text_aside
from unimmad.prediction.detector import Prediction
from unimmad.prediction.pictures import save_heat_map

LINES_NAME = "predictions.jsonl"
PICTURES = "pictures"
MAPS = "maps"
MOST_ROWS = 20
"""Samples that the table on screen shows, the highest scores."""
LONGEST_NAME = 40


@dataclass(frozen=True)
class Row:
    """What stays in memory of a prediction."""

    name: str
    class_name: str | None
    score: float
    anomalous: bool | None
    notes: tuple[str, ...]


class PredictionFolder:
    """Writes predictions as they come; the JSON lines appear when all are there, and not at all after an error."""

    def __init__(self, folder: Path, scale: float | None = None, with_maps: bool = False) -> None:
        """
        Args:
            folder: made where it is not there.
            scale: map value at the bright end of the colours; None: see ``_limits``.
            with_maps: write the maps, too.
        """
        self.folder = folder
        self.scale = scale
        self.with_maps = with_maps
        self.rows: list[Row] = []
        self._lines: list[str] = []

    @property
    def lines_file(self) -> Path:
        return self.folder / LINES_NAME

    @property
    def pictures(self) -> Path:
        return self.folder / PICTURES

    def __enter__(self) -> PredictionFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            write_text_aside(self.lines_file, "".join(f"{line}\n" for line in self._lines))

    def add(self, prediction: Prediction) -> None:
        """Write a sample's picture and map, and keep its line.

        Raises:
            ValueError: the folder cannot be written to.
        """
        picture = map_file = None
        if prediction.pictures:
            picture = f"{PICTURES}/{prediction.name}.png"
            limits = _limits(prediction, self.scale)
            save_heat_map(prediction.pictures, prediction.map_HW, limits, self.folder / picture)
        if self.with_maps:
            map_file = f"{MAPS}/{prediction.name}.npy"
            write_aside(self.folder / map_file, lambda temporary: np.save(temporary, prediction.map_HW))
        self._lines.append(_line(prediction, picture, map_file))
        self.rows.append(
            Row(prediction.name, prediction.class_name, prediction.score, prediction.anomalous, prediction.notes)
        )


def screen_table(rows: Sequence[Row], thresholds: Thresholds | None) -> str:
    """The highest scores first, then counts, and in words what the decisions rest on; within 80 columns."""
    shown = sorted(rows, key=lambda row: -row.score)[:MOST_ROWS]
    names = [_shortened(row.name) for row in shown]
    widest = max(len("sample"), *map(len, names))
    lines = [f"{'sample':{widest}}  {'score':>9}  decision"]
    decisions = {True: "anomalous", False: "normal", None: "-"}
    for name, row in zip(names, shown, strict=True):
        lines.append(f"{name:{widest}}  {row.score:9.4g}  {decisions[row.anomalous]}")
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} with lower scores")
    lines += [_summary(rows, thresholds), *(f"note: {note}" for note in _notes(rows))]
    return "\n".join(lines)


def _summary(rows: Sequence[Row], thresholds: Thresholds | None) -> str:
    if thresholds is None:
        return (
            f"{len(rows)} scored. No thresholds lie beside the checkpoint, so there is no decision: calibrate with "
            "tools/evaluate.py --calibrate"
        )
    anomalous, normal = (sum(row.anomalous is wanted for row in rows) for wanted in (True, False))
    undecided = len(rows) - anomalous - normal
    left = f", {undecided} not decided" if undecided else ""
    return f"{anomalous} anomalous, {normal} normal{left}, at a false-alarm rate of {thresholds.false_alarm_rate:g}"


def _notes(rows: Sequence[Row]) -> list[str]:
    """Each note once, with the number of samples that it is about."""
    counts: dict[str, int] = {}
    for row in rows:
        for note in row.notes:
            counts[note] = counts.get(note, 0) + 1
    return [note if count == len(rows) else f"{note} ({count} of {len(rows)})" for note, count in counts.items()]


def _limits(prediction: Prediction, scale: float | None) -> tuple[float, float]:
    """0 to ``scale``; else about the threshold, which the middle colour shows; else the map's own range."""
    if scale is not None:
        return 0.0, scale
    threshold = prediction.threshold
    if threshold is not None and threshold > 0:
        return 0.5 * threshold, 1.5 * threshold
    return colour_limits([prediction.map_HW])


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _line(prediction: Prediction, picture: str | None, map_file: str | None) -> str:
    content = {
        "name": prediction.name,
        "files": prediction.files,
        "class": prediction.class_name,
        "modalities": prediction.modalities,
        "score": prediction.score,
        "threshold": prediction.threshold,
        "threshold_of": prediction.threshold_of,
        "anomalous": prediction.anomalous,
        "picture": picture,
        "map": map_file,
        "notes": prediction.notes,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False)
