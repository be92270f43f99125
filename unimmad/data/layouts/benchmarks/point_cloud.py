"""Point clouds of PCD files, and the depth that they give when they are seen along z.

A header of lines (VERSION, FIELDS, SIZE, TYPE, COUNT, WIDTH, HEIGHT, VIEWPOINT, POINTS, DATA), then one record a point,
as text or as little-endian numbers. A cloud of several rows is organised: point r * WIDTH + c lies in row r, column c.
Compressed data (DATA binary_compressed) are refused by name.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimmad.data.decode_limits import check_decoded, read_image_file
from unimmad.data.depth_range import MAX_DEPTH_METRES

logger = logging.getLogger(__name__)

CLOUD_SUFFIX = ".pcd"
MAX_HEADER_BYTES = 2**12
POINTS_PER_CELL = 4
"""Of a cloud without rows: so many points on average in one pixel, so that nearly none stays empty."""
STRAY_PERCENT = 0.1
"""Of a cloud without rows: so many of its points may lie far out on each side, in x and in y, and are left out."""
STRAY_MARGIN = 0.1
"""How far out that is, as a share of what the other points span."""
MOST_EMPTY = 0.5
"""Beyond this share of empty pixels of a cloud without rows, it is said."""

_TYPES = {"F": ("f", (4, 8)), "I": ("i", (1, 2, 4, 8)), "U": ("u", (1, 2, 4, 8))}
"""Numpy's letter, and the numbers of bytes, of each TYPE."""


@dataclass(frozen=True)
class CloudHeader:
    """What a PCD file says of itself."""

    record: np.dtype[np.void]
    """One point's fields, packed, little-endian."""
    height: int
    """1 where the points have no order."""
    width: int
    encoding: str
    """``ascii`` or ``binary``."""
    bytes: int
    """Where the points begin."""

    @property
    def organised(self) -> bool:
        return self.height > 1


def read_cloud_header(path: Path) -> CloudHeader:
    """Only the first bytes of ``path`` are read.

    Raises:
        ValueError: not a PCD, or one that is not read.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return _header(stream.read(MAX_HEADER_BYTES), path)


def read_cloud_depth(path: Path) -> np.ndarray:
    """float32, H x W: z as stored, NaN where nothing was measured (not finite, too far, or 0 in x, y and z).

    An organised cloud keeps its rows. Another is seen from along z, x to the right and y downwards: the square cells of
    its own extent, without strays, of ``POINTS_PER_CELL`` points on average, have the mean of their points.

    Raises:
        ValueError: not a PCD, too large, cut off, no point that was measured, or points that span no area.
        OSError: it cannot be read.
    """
    data = read_image_file(path)
    header = _header(data[:MAX_HEADER_BYTES], path)
    try:
        points_N3 = _points(header, memoryview(data)[header.bytes :])
        measured_N = (np.abs(points_N3) <= MAX_DEPTH_METRES).all(axis=1) & (points_N3 != 0).any(axis=1)
        if not measured_N.any():
            raise ValueError("none of its points was measured")
        if header.organised:
            depth_N = np.where(measured_N, points_N3[:, 2], np.nan)
            return depth_N.reshape(header.height, header.width).astype(np.float32)
        depth_HW = _seen_along_z(_without_strays(points_N3[measured_N])).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; replace or remove it") from None
    if (empty := float(np.isnan(depth_HW).mean())) > MOST_EMPTY:
        said = "note: %s: %.0f%% of its depth is empty: a slender object, or points far from it"
        logger.warning(said, path, 100 * empty)
    return depth_HW


def _header(data: bytes, path: Path) -> CloudHeader:
    said: dict[str, list[str]] = {}
    stream = io.BytesIO(data)
    while "DATA" not in said and (line := stream.readline()):
        words = line.decode("ascii", "replace").split("#")[0].split()
        if words:
            said[words[0]] = words[1:]
    try:
        (encoding,), (width,), (height,) = said["DATA"], map(int, said["WIDTH"]), map(int, said["HEIGHT"])
        record = _record(said)
        if [int(count) for count in said.get("POINTS", [width * height])] != [width * height] or width * height < 1:
            raise ValueError
    except (KeyError, ValueError):
        raise ValueError(f"{path}: its header is not that of a point cloud (PCD); replace or remove it") from None
    if encoding not in ("ascii", "binary"):
        raise ValueError(f"{path}: its points are stored as {encoding}; save it as ascii or binary")
    return CloudHeader(record, height, width, encoding, stream.tell())


def _record(said: dict[str, list[str]]) -> np.dtype[np.void]:
    """The fields; KeyError or ValueError where ``said`` does not fit together, or lacks x, y or z."""
    names, counts = said["FIELDS"], said.get("COUNT", ["1"] * len(said["FIELDS"]))
    fields: list[tuple[str, str, tuple[int]]] = []
    for name, size, letter, count in zip(names, said["SIZE"], said["TYPE"], counts, strict=True):
        kind, sizes = _TYPES[letter]
        if int(size) not in sizes or not 0 < int(count) <= MAX_HEADER_BYTES:
            raise ValueError
        fields.append((name if name in "xyz" else f"{len(fields)}", f"<{kind}{size}", (int(count),)))
    record = np.dtype(fields)  # which refuses a name twice
    if any(record[axis].shape != (1,) for axis in "xyz"):
        raise ValueError
    return record


def _points(header: CloudHeader, data: memoryview) -> np.ndarray:
    """float64, N x 3."""
    count = header.height * header.width
    check_decoded(header.height, header.width, count * max(header.record.itemsize, 3 * 8))
    if header.encoding == "binary":
        if len(data) < count * header.record.itemsize:
            raise ValueError("it ends before its last point")
        records_N = np.frombuffer(data, header.record, count)
        return np.stack([records_N[axis][:, 0].astype(np.float64) for axis in "xyz"], axis=1)
    columns = _columns(header.record)
    points_N3 = np.loadtxt(io.BytesIO(data), usecols=columns, comments=None, max_rows=count, ndmin=2)
    if len(points_N3) < count:
        raise ValueError("it ends before its last point")
    return points_N3


def _columns(record: np.dtype[np.void]) -> list[int]:
    """The columns of x, y and z in text."""
    names = record.names or ()
    return [sum(math.prod(record[name].shape) for name in names[: names.index(axis)]) for axis in "xyz"]


def _without_strays(points_N3: np.ndarray) -> np.ndarray:
    """A point far out would make the cells so large that all others share a few. At least the outermost points of each
    side are looked at, so that few points have no stray."""
    low_2 = np.percentile(points_N3[:, :2], STRAY_PERCENT, axis=0, method="lower")
    high_2 = np.percentile(points_N3[:, :2], 100 - STRAY_PERCENT, axis=0, method="higher")
    margin_2 = STRAY_MARGIN * (high_2 - low_2)
    inside_N2 = (points_N3[:, :2] >= low_2 - margin_2) & (points_N3[:, :2] <= high_2 + margin_2)
    return points_N3[inside_N2.all(axis=1)]


def _seen_along_z(points_N3: np.ndarray) -> np.ndarray:
    corner_2 = points_N3[:, :2].min(axis=0)
    span_2 = points_N3[:, :2].max(axis=0) - corner_2
    area = float(span_2.prod())
    if area == 0:
        raise ValueError("its points have one x or one y, and so span no area")
    cell = math.sqrt(area * POINTS_PER_CELL / len(points_N3))
    width, height = (max(1, round(float(span) / cell)) for span in span_2)
    check_decoded(height, width, height * width * 8)
    columns_N, rows_N = (
        np.minimum((points_N3[:, axis] - corner_2[axis]) / span_2[axis] * length, length - 1).astype(np.int64)
        for axis, length in enumerate((width, height))
    )
    cells_N = rows_N * width + columns_N
    counts = np.bincount(cells_N, minlength=height * width)
    sums = np.bincount(cells_N, weights=points_N3[:, 2], minlength=height * width)
    with np.errstate(invalid="ignore"):
        return (sums / np.where(counts, counts, np.nan)).reshape(height, width)
