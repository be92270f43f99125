"""DICOM files of one picture each, by pydicom."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimmad.data.decode import check_same_size, decode_mask_pixels
from unimmad.data.decode_limits import check_decoded, read_image_file
from unimmad.data.layouts.encode import png_bytes
from unimmad.data.layouts.medical.gray_png import gray_png, windowed
from unimmad.data.layouts.medical.orientation import AS_STORED, Turn, turn
from unimmad.data.layouts.medical.slices import INSTALL
from unimmad.data.layouts.source_set import SourceFile

SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ""})
"""Of names; files without a suffix are looked into."""
DIRECTORY = "DICOMDIR"
"""A table of contents, which lies beside exported slices."""
MAGIC_OFFSET, MAGIC = 128, b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"
TOMOGRAPHIC = ("CT", "MR", "PT")
"""Modalities whose slices have a place in the patient."""
GRAY = ("MONOCHROME1", "MONOCHROME2")
VALUE_BYTES = 8


@dataclass(frozen=True)
class DicomSlice:
    """One file; see ``slices.Slice``."""

    path: Path
    series: str
    turn: Turn
    spacing: tuple[float, float]
    window: tuple[float, float] | None
    kind: str
    patient: str
    """PatientID, else the series."""

    def image(self, limits: tuple[float, float] | None) -> SourceFile:
        if limits is None:
            raise ValueError(f"{self.path}: the range of its series is not known")
        return SourceFile(name=str(self.path), suffix=".png", read=partial(_png, self.path, limits))

    def mask(self, path: Path) -> SourceFile:
        """A mask drawn over the stored picture, turned as it is."""
        return SourceFile(name=str(path), suffix=".png", read=partial(_mask_png, path, self.path))

    def values(self) -> np.ndarray:
        """As measured (Hounsfield units of CT), stored orientation, H x W."""
        return _values(self.path, _read(self.path))


def is_dicom(path: Path) -> bool:
    """Judged by the suffix; without one by the first bytes."""
    if path.suffix.lower() not in SUFFIXES or path.name.startswith((".", DIRECTORY)) or not path.is_file():
        return False
    if path.suffix:
        return True
    with path.open("rb") as stream:
        return stream.read(MAGIC_OFFSET + len(MAGIC)).endswith(MAGIC)


def find_slice(path: Path) -> DicomSlice:
    """Read a file's header.

    Raises:
        ValueError: not DICOM, or not one gray picture whose place, size and window are clear.
    """
    header = _read(path, pixels=False)
    try:
        return _described(path, header)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def _described(path: Path, header: Any) -> DicomSlice:
    photometric, kind = str(header.get("PhotometricInterpretation", "")), str(header.get("Modality") or "")
    if not photometric:
        raise ValueError("holds no picture; leave it out of the folder")
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise ValueError(f"holds {frames} pictures; save each as a file of its own")
    if photometric not in GRAY:
        raise ValueError(f"is {photometric}, not gray; save colour pictures as PNG")
    check_decoded(header.Rows, header.Columns, header.Rows * header.Columns * VALUE_BYTES)
    turned = _turn(header, kind)
    series = str(header.get("SeriesInstanceUID") or path.parent)
    return DicomSlice(
        path=path,
        series=series,
        turn=turned,
        spacing=turned.spacing(_spacing(header)),
        window=_window(header),
        kind=kind,
        patient=str(header.get("PatientID") or series),
    )


def _read(path: Path, pixels: bool = True) -> Any:
    try:
        import pydicom
        from pydicom.filereader import read_file_meta_info
    except ImportError:
        raise ValueError(f"{path}: DICOM is read by the package pydicom: {INSTALL}") from None
    data = read_image_file(path)
    try:
        # It would be unpacked whole, however large that gets.
        if read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
            raise ValueError("deflated; store it uncompressed")
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
    except Exception as error:  # broken files make it raise a dozen unrelated types
        raise ValueError(f"{path}: does not open as DICOM ({_reason(error)}); replace or remove it") from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _numbers(header: Any, name: str, count: int) -> list[float] | None:
    values = header.get(name)
    if values is None or values == "":
        return None
    listed = [float(value) for value in (values if hasattr(values, "__iter__") else [values])]
    return listed if len(listed) == count else None


def _turn(header: Any, kind: str) -> Turn:
    directions = _numbers(header, "ImageOrientationPatient", 6)
    if directions is not None:
        return turn(directions[:3], directions[3:])
    if kind in TOMOGRAPHIC:
        raise ValueError(f"a slice of {kind} without ImageOrientationPatient: which side is up is not known")
    return AS_STORED


def _spacing(header: Any) -> tuple[float, float]:
    """Stored: between rows, and between columns."""
    found = _numbers(header, "PixelSpacing", 2) or _numbers(header, "ImagerPixelSpacing", 2)
    if found is None or not all(0 < length < math.inf for length in found):
        raise ValueError("has neither PixelSpacing nor ImagerPixelSpacing: its size in millimetres is not known")
    return found[0], found[1]


def _window(header: Any) -> tuple[float, float] | None:
    """The first window that the file carries, where it is linear."""
    if str(header.get("VOILUTFunction") or "LINEAR") == "SIGMOID":
        return None
    found = [np.ravel(np.asarray(header.get(name) or (), dtype=float)) for name in ("WindowCenter", "WindowWidth")]
    if not all(values.size and np.isfinite(values[0]) for values in found) or found[1][0] <= 0:
        return None
    return float(found[0][0]), float(found[1][0])


def _values(path: Path, dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    try:
        return np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
    except Exception as error:  # decoders of many formats raise as many types
        raise ValueError(f"{path}: its picture cannot be read ({_reason(error)}); store it uncompressed") from None


def _png(path: Path, limits: tuple[float, float]) -> bytes:
    dataset = _read(path)
    found = find_slice(path)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    pixels_HW = found.turn.apply(windowed(_values(path, dataset), limits, inverted))
    return gray_png(pixels_HW, found.turn, found.spacing, limits)


def _mask_png(path: Path, image: Path) -> bytes:
    marked_HW = decode_mask_pixels(read_image_file(path), path.suffix.lower(), str(path))
    header = _read(image, pixels=False)
    shape = (int(header.Rows), int(header.Columns))
    check_same_size(str(path), marked_HW.shape, str(image), shape)
    return png_bytes(find_slice(image).turn.apply(marked_HW).astype(np.uint8) * 255)


def series_values(slices: Sequence[DicomSlice]) -> np.ndarray:
    """All values of one series, flat, but those of slices that can't be read.

    Raises:
        ValueError: none can.
    """
    found, problems = [], list[ValueError]()
    for item in slices:
        try:
            found.append(item.values().ravel())
        except ValueError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return np.concatenate(found)
