"""What prediction leaves behind: JSON lines, heat maps, a table on screen.

OUTPUT/predictions.jsonl           one object a sample, in the order of the samples
OUTPUT/predictions.partial.jsonl   the same while it is being made: each sample as soon as it is scored
OUTPUT/pictures/NAME.png           modalities, map, map over the first modality
OUTPUT/maps/NAME.npy               the map itself, float32, where asked for
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from unimmad.checkpoint.thresholds import Threshold, Thresholds
from unimmad.inference.deciding import ALL_CLASSES
from unimmad.inference.pictures import save_heat_map
from unimmad.inference.prediction import Prediction
from unimmad.report.drawing import colour_limits
from unimmad.serialization.atomic_write import write_aside
from unimmad.serialization.text import one_line, utf8_name
from unimmad.serialization.validation import Entry

LINES_NAME = "predictions.jsonl"
PARTIAL_NAME = "predictions.partial.jsonl"
PICTURES = "pictures"
MAPS = "maps"
MOST_ROWS = 20
"""Samples that the table on screen shows, the highest scores."""
LONGEST_NAME = 40
MOST_NAME_BYTES = 240
"""Of a picture's name without suffix: file systems allow 255 in all."""


class Row(Entry):
    """What stays in memory of a prediction; a line of the file has more."""

    name: str
    fingerprint: str
    score: float
    anomalous: bool | None
    threshold_of: str | None
    notes: tuple[str, ...]
    modalities: tuple[str, ...] = ()
    threshold_promised: bool | None = None
    picture: str | None = None
    map: str | None = None


class PredictionFolder:
    """Writes each prediction as it comes; what an interrupted one of the same fingerprints wrote is kept.

    ``predictions.jsonl`` appears when all is there; until then the lines are in ``predictions.partial.jsonl``.
    """

    def __init__(
        self,
        folder: Path,
        fingerprints: Mapping[str, str],
        scale: float | None = None,
        with_maps: bool = False,
        reference: str | None = None,
    ) -> None:
        """
        Args:
            folder: made with the first prediction where it is not there.
            fingerprints: of each sample by name (of UTF-8), in the order that the lines will have.
            scale: map value at the bright end of the colours; None: see ``picture_limits``.
            with_maps: write the maps, too.
            reference: digest of the calibration that images' statistics were compared with; None: they were not.
        """
        self.folder = folder
        self.fingerprints = fingerprints
        self.scale = scale
        self.with_maps = with_maps
        self.reference = reference
        self.rows: dict[str, Row] = {}
        """By sample name."""
        self._places: dict[str, tuple[int, int]] = {}
        """Where each one's line begins in the partial file, and its length."""
        self._partial: FileIO | None = None
        self._earlier: set[str] = set()
        """Pictures and maps of an earlier prediction in the folder."""

    @property
    def lines_file(self) -> Path:
        return self.folder / LINES_NAME

    @property
    def partial_file(self) -> Path:
        return self.folder / PARTIAL_NAME

    @property
    def pictures(self) -> Path:
        return self.folder / PICTURES

    def __enter__(self) -> PredictionFolder:
        """
        Raises:
            ValueError: another process is writing to the folder, or it cannot be written to.
        """
        if self.partial_file.is_file():
            try:
                self._open()
            except ValueError:
                self._close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._partial is not None:
                lines = self._in_order(self._partial)
                if self.lines_file.is_file():
                    with self.lines_file.open("rb") as earlier:
                        self._earlier |= {file for row in map(_row, earlier) if row for file in _files(row)}
                write_aside(self.lines_file, lambda temporary: _write_all(temporary, lines))
                self.partial_file.unlink(missing_ok=True)
                self._remove_earlier()
        finally:
            self._close()

    def add(self, prediction: Prediction) -> None:
        """Write a sample's picture and map, then its line.

        Raises:
            ValueError: as ``__enter__``.
        """
        stream = self._partial or self._open()
        picture = map_file = None
        if prediction.pictures:
            picture = f"{PICTURES}/{_file_name(prediction.name)}.png"
            limits, title = picture_limits(prediction, self.scale), picture_title(prediction, self.scale)
            looked_at = prediction.weights_HW
            target, parts = self.folder / picture, picture_parts(prediction)
            save_heat_map(prediction.pictures, prediction.map_HW, limits, target, looked_at, title, parts)
        if self.with_maps:
            map_file = f"{MAPS}/{_file_name(prediction.name)}.npy"
            write_aside(self.folder / map_file, lambda temporary: np.save(temporary, prediction.map_HW))
        line = _line(prediction, picture, map_file, self.fingerprints[prediction.name], self.reference)
        try:
            place = stream.seek(0, os.SEEK_END)
            if stream.write(line) != len(line):
                raise OSError("no space is left")
        except OSError as problem:
            raise _cannot_write(self.partial_file, problem) from None
        self._keep(Row.model_validate_json(line), place, len(line))

    def _open(self) -> FileIO:
        """The partial file, locked, and read as far as it is of these samples."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._partial = stream = self.partial_file.open("a+b", buffering=0)
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(stream.fileno()).st_nlink:
                raise BlockingIOError  # another one finished and removed it meanwhile
            with self.partial_file.open("rb") as lines:
                stream.truncate(self._read(lines))
        except BlockingIOError:
            raise ValueError(
                f"another prediction is being written to {self.folder}; wait for it, or choose another output folder"
            ) from None
        except OSError as problem:
            raise _cannot_write(self.partial_file, problem) from None
        return stream

    def _close(self) -> None:
        if self._partial is not None:
            self._partial.close()

    def _read(self, lines: BinaryIO) -> int:
        """Keep the rows of these samples; returns where the last whole line ends."""
        place = 0
        for line in lines:
            if not line.endswith(b"\n"):
                break  # cut short as it was written
            row = _row(line)  # None: none of ours, or damaged; its sample is scored again
            if row is not None and self.fingerprints.get(row.name) == row.fingerprint:
                self._keep(row, place, len(line))
            elif row is not None:
                self._earlier |= _files(row)
            place += len(line)
        return place

    def _keep(self, row: Row, place: int, length: int) -> None:
        self.rows[row.name] = row
        self._places[row.name] = (place, length)

    def _remove_earlier(self) -> None:
        """So that no picture lies here that the lines do not name."""
        named = {file for row in self.rows.values() for file in _files(row)}
        for file in self._earlier - named:
            (self.folder / file).unlink(missing_ok=True)

    def _in_order(self, partial: FileIO) -> Iterator[bytes]:
        """The lines, read from the open file: somebody may have removed the folder meanwhile."""
        for name in self.fingerprints:
            if name in self._places:
                place, length = self._places[name]
                yield os.pread(partial.fileno(), length, place)


def _row(line: bytes) -> Row | None:
    """None where it is not one of ours."""
    try:
        return Row.model_validate_json(line)
    except ValidationError:
        return None


def _files(row: Row) -> set[str]:
    """A row's picture and map, where they are at places that prediction writes to: anybody may have changed a file."""
    places = {(row.picture, PICTURES, ".png"), (row.map, MAPS, ".npy")}
    return {
        file
        for file, folder, suffix in places
        if file and Path(file).parts[0] == folder and ".." not in Path(file).parts and file.endswith(suffix)
    }


def screen_table(
    rows: Sequence[Row], thresholds: Thresholds | None, misses_class: bool = False, exported: bool = False
) -> str:
    """The highest scores first, then counts, and in words what the decisions rest on; within 80 columns.

    ``misses_class``: as the engine that scored says; ``exported``: it is an exported file.
    """
    shown = sorted(rows, key=lambda row: -row.score)[:MOST_ROWS]
    names = [_shortened(one_line(row.name)) for row in shown]
    widest = max(len("sample"), *map(len, names))
    lines = [f"{'sample':{widest}}  {'score':>9}  decision"]
    decisions = {True: "anomalous", False: "normal", None: "-"}
    for name, row in zip(names, shown, strict=True):
        lines.append(f"{name:{widest}}  {row.score:9.4g}  {decisions[row.anomalous]}")
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} with lower scores")
    lines += [_summary(rows, thresholds, misses_class, exported), *(f"note: {note}" for note in _notes(rows))]
    return "\n".join(lines)


def _summary(rows: Sequence[Row], thresholds: Thresholds | None, misses_class: bool, exported: bool) -> str:
    if misses_class:
        return f"{len(rows)} scored, without a decision: for one, use the checkpoint in place of the exported file"
    unpromised = sum(row.threshold_promised is False for row in rows)
    if thresholds is None and exported:
        return (
            f"{len(rows)} scored. The exported file has no thresholds, so there is no decision:\ncalibrate its "
            "checkpoint (unimmad calibrate), and export it again"
        )
    if thresholds is None and not unpromised:
        return (
            f"{len(rows)} scored. No thresholds lie beside the checkpoint, so there is no decision.\nunimmad calibrate "
            "writes them, from images that unimmad shards --calibration-fraction set aside before training"
        )
    anomalous, normal = (sum(row.anomalous is wanted for row in rows) for wanted in (True, False))
    undecided = len(rows) - anomalous - normal
    left = f", {undecided} not decided" if undecided else ""
    counts = f"{anomalous} anomalous, {normal} normal{left}"
    if not anomalous + normal:
        return counts
    if thresholds is None or unpromised == anomalous + normal:
        return f"{counts}, by thresholds that promise no false-alarm rate"
    more = f", but {unpromised} by thresholds that promise none" if unpromised else ""
    return f"{counts}, at a false-alarm rate of {_rate(rows, thresholds):.3g}{more}"


def _rate(rows: Sequence[Row], thresholds: Thresholds) -> float:
    """The one asked for, or the highest that a threshold promises instead, for want of calibration images."""
    used = {(row.threshold_of, row.modalities) for row in rows}
    found = (_used(thresholds, name, modalities) for name, modalities in used if name is not None)
    return max([thresholds.false_alarm_rate, *(threshold.fpr_bound for threshold in found if threshold is not None)])


def _used(thresholds: Thresholds, name: str, modalities: tuple[str, ...]) -> Threshold | None:
    if name == ALL_CLASSES:
        return thresholds.of_all(modalities)
    return thresholds.of_class(name, modalities) if name in thresholds.classes else None


def _notes(rows: Sequence[Row]) -> list[str]:
    """Each note once, with the number of samples that it is about."""
    counts: dict[str, int] = {}
    for row in rows:
        for note in row.notes:
            counts[note] = counts.get(note, 0) + 1
    return [note if count == len(rows) else f"{note} ({count} of {len(rows)})" for note, count in counts.items()]


def picture_limits(prediction: Prediction, scale: float | None = None) -> tuple[float, float]:
    """Ends of a heat map's colours: 0 to ``scale``; else those of the prediction; else the map's own range."""
    if scale is not None:
        return 0.0, scale
    return prediction.limits or colour_limits([prediction.map_HW])


def picture_parts(prediction: Prediction) -> list[tuple[str, NDArray[np.float32]]]:
    """What each modality adds to the map, under its share of the score, times the number of modalities: one that adds
    as much as the others has the map's colours."""
    shares, times = prediction.shares or {}, len(prediction.modality_maps)
    parts = prediction.modality_maps.items()
    return [(f"{name}: {shares[name]:.0%} (x {times})", part_HW * np.float32(times)) for name, part_HW in parts]


def picture_title(prediction: Prediction, scale: float | None = None) -> tuple[str, str]:
    """What stands above a picture: the sample, and what was said of it."""
    decision = {True: "anomalous", False: "normal", None: "not decided"}[prediction.anomalous]
    said = f"score {prediction.score:.4g}, {decision}"
    if prediction.threshold is not None:
        promised = "" if prediction.threshold_promised is not False else ", not promised"
        said += f" (threshold {prediction.threshold:.4g}{promised})"
    if scale is None and prediction.limits is None:
        said += "; colours over this map's own range"
    return one_line(prediction.name), said


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"


def _file_name(name: str) -> str:
    """A sample's name as that of a file: cut where it is too long, with a checksum then."""
    folder, separator, last = name.rpartition("/")
    if len(last.encode()) > MOST_NAME_BYTES:
        checksum = hashlib.sha256(last.encode()).hexdigest()[:10]
        last = f"{last.encode()[: MOST_NAME_BYTES - 11].decode(errors='ignore')}~{checksum}"
    return f"{folder}{separator}{last}"


def said_of(prediction: Prediction) -> dict[str, Any]:
    """What is told of a prediction wherever it is told as JSON: in the lines of a file, and by ``unimmad serve``."""
    return {
        "name": prediction.name,
        "class": prediction.class_name,
        "modalities": prediction.modalities,
        "score": prediction.score,
        "shares": prediction.shares,
        "misaligned": prediction.misaligned,
        "threshold": prediction.threshold,
        "threshold_of": prediction.threshold_of,
        "threshold_promised": prediction.threshold_promised,
        "anomalous": prediction.anomalous,
        "roi": prediction.roi,
        "notes": [utf8_name(note) for note in prediction.notes],
    }


def _line(
    prediction: Prediction, picture: str | None, map_file: str | None, fingerprint: str, reference: str | None
) -> bytes:
    content: dict[str, Any] = {
        **said_of(prediction),
        "files": {modality: utf8_name(file) for modality, file in prediction.files.items()},
        "picture": picture,
        "map": map_file,
        "fingerprint": fingerprint,
    }
    if reference is not None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        content["monitor"] = {"reference": reference, "time": time, "images": prediction.statistics or {}}
    return f"{json.dumps(content, ensure_ascii=False, allow_nan=False)}\n".encode()


def _write_all(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as stream:
        stream.writelines(lines)


def _cannot_write(path: Path, problem: OSError) -> ValueError:
    return ValueError(f"cannot write {path}: {problem.strerror or problem}; choose another output folder")
