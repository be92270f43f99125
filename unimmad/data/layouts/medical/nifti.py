"""NIfTI volumes, by nibabel: a slice of each is a sample.

Slices are counted along nibabel's canonical axes: sagittal ones from the left, coronal from the back, axial from the
feet.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from unimmad.data.decode_limits import check_decoded, check_encoded
from unimmad.data.layouts.encode import png_bytes
from unimmad.data.layouts.medical.gray_png import gray_png, windowed
from unimmad.data.layouts.medical.orientation import Turn, turn
from unimmad.data.layouts.medical.slices import INSTALL
from unimmad.data.layouts.medical.windows import own_limits
from unimmad.data.layouts.source_set import SourceFile

SUFFIXES = (".nii.gz", ".nii")
VALUE_BYTES = 4
MAX_HEADER_BYTES = 2**20
"""Where a file's voxels may begin at most: extensions stand before them."""
ISOTROPIC = 1.25
"""A volume whose largest spacing is less than this times the next one is sliced axially, others across their coarsest
axis, along which they were taken."""
_AXES_LPS = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
"""Where nibabel's canonical axes (to the right, front and head) lead in DICOM's frame."""
CACHED_VOLUMES, CACHED_HEADERS = 4, 64
AFFINE_TOLERANCE = 0.01
"""Millimetres, and share: grids that differ less are one."""


@dataclass(frozen=True)
class Volume:
    """A volume's header, its axes in canonical order."""

    path: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]

    @property
    def axis(self) -> int:
        """Across which it is sliced."""
        ordered = sorted(range(3), key=lambda axis: self.spacing[axis])
        thickest = self.spacing[ordered[2]] >= ISOTROPIC * self.spacing[ordered[1]]
        return ordered[2] if thickest else 2

    def slices(self) -> Iterator[VolumeSlice]:
        for number in range(self.shape[self.axis]):
            yield VolumeSlice(self, number)


@dataclass(frozen=True)
class VolumeSlice:
    """One slice; see ``slices.Slice``."""

    volume: Volume
    number: int
    window: tuple[float, float] | None = None
    kind: str = ""

    @property
    def path(self) -> Path:
        return self.volume.path

    @property
    def series(self) -> str:
        return str(self.volume.path)

    @property
    def turn(self) -> Turn:
        columns, rows = _in_plane(self.volume.axis)
        return turn(_AXES_LPS[columns], _AXES_LPS[rows])

    @property
    def spacing(self) -> tuple[float, float]:
        columns, rows = _in_plane(self.volume.axis)
        return self.turn.spacing((self.volume.spacing[rows], self.volume.spacing[columns]))

    def image(self, limits: tuple[float, float] | None) -> SourceFile:
        return self._file(partial(_png, self.path, self.number, limits))

    def mask(self, path: Path) -> SourceFile:
        """The slice of the mask volume ``path``, which lies on this volume's grid."""
        return SourceFile(str(path), ".png", partial(_mask_png, path, self.number, self.path), f"slice {self.number}")

    def _file(self, read: partial[bytes]) -> SourceFile:
        return SourceFile(str(self.path), ".png", read, f"slice {self.number}")


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()


def stem(path: Path) -> str:
    """The name without ``.nii`` or ``.nii.gz``."""
    return path.name[: -len(next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)))]


def find_volume(path: Path) -> Volume:
    """Read a volume's header.

    Raises:
        ValueError: not NIfTI, not one volume of real numbers, too large, or without an orientation.
    """
    image = _open(path)
    from nibabel.orientations import inv_ornt_aff

    orientation_32 = _orientation(path, image)
    stored = np.argsort(orientation_32[:, 0])
    shape = tuple(int(image.shape[axis]) for axis in stored)
    spacing = tuple(float(image.header.get_zooms()[axis]) for axis in stored)
    affine_44 = image.affine @ inv_ornt_aff(orientation_32, image.shape[:3])
    affine = tuple(tuple(round(float(value), 6) for value in row) for row in affine_44)
    return Volume(path, (shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]), affine)


def marked_slices(volume: Volume, mask: Path) -> set[int]:
    """The slices of ``volume`` in which the volume ``mask`` marks anything.

    Raises:
        ValueError: it does not open, or lies on another grid.
    """
    marked = _mask_values(mask, volume)
    across = tuple(axis for axis in range(3) if axis != volume.axis)
    return {int(number) for number in np.flatnonzero(marked.any(axis=across))}


def check_one_grid(first: Volume, other: Volume) -> None:
    """Raise ValueError, naming both, unless a voxel of one is where the same voxel of the other is."""
    one, two = np.array(first.affine), np.array(other.affine)
    if first.shape != other.shape or not np.allclose(one, two, rtol=AFFINE_TOLERANCE, atol=AFFINE_TOLERANCE):
        raise ValueError(
            f"{other.path} does not lie on the grid of {first.path} (size, spacing, position or orientation differ); "
            "resample one to the other"
        )


def _check_header(path: Path) -> None:
    """nibabel reads as much as a header's extensions say, so what they say is looked at before.

    Raises:
        ValueError: the file or its header is too large, or an extension reaches beyond the header.
        OSError: it can't be read.
    """
    check_encoded(path.stat().st_size, str(path))
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        start = stream.read(4)
        order = next((order for order in "<>" if struct.unpack(f"{order}i", start) in ((348,), (540,))), None)
        if order is None:
            raise ValueError("it does not begin with a NIfTI header")
        size = struct.unpack(f"{order}i", start)[0]
        header = start + stream.read(size)  # and the four bytes that say whether there are extensions
        (voxels,) = struct.unpack_from(*((f"{order}f", header, 108) if size == 348 else (f"{order}q", header, 168)))
        if not size <= voxels <= MAX_HEADER_BYTES:
            raise ValueError(f"its voxels begin at byte {voxels:g}; at most {MAX_HEADER_BYTES} bytes may stand before")
        place = size + 4
        while header[size] and place < voxels:
            extension = stream.read(8)
            length = struct.unpack(f"{order}i", extension[:4])[0] if len(extension) == 8 else 0
            if not 16 <= length <= voxels - place:
                raise ValueError("its header's extensions are damaged")
            place += 8 + len(stream.read(length - 8))


def _in_plane(axis: int) -> tuple[int, int]:
    """The canonical axes of a slice's columns and rows."""
    columns, rows = (other for other in range(3) if other != axis)
    return columns, rows


def _open(path: Path) -> Any:
    try:
        import nibabel
    except ImportError:
        raise ValueError(f"{path}: NIfTI is read by the package nibabel: {INSTALL}") from None
    try:
        _check_header(path)
        image = nibabel.load(path)
        shape = tuple(int(length) for length in image.shape)
        kind, codes = image.get_data_dtype().kind, (int(image.header["qform_code"]), int(image.header["sform_code"]))
    except Exception as error:  # broken files make it raise a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: does not open as NIfTI ({reason}); replace or remove it") from None
    if len(shape) < 3 or math.prod(shape[3:]) != 1 or 0 in shape:
        raise ValueError(
            f"{path}: its shape is {shape}; wanted one volume, H x W x slices: save each as a file of its own"
        )
    if kind not in "iuf":
        raise ValueError(f"{path}: its values are {image.get_data_dtype()}; wanted integers or real numbers")
    if not any(codes):
        raise ValueError(
            f"{path}: says no orientation (qform_code and sform_code are 0): which side is up is not known"
        )
    try:
        check_decoded(shape[0], shape[1], math.prod(shape) * VALUE_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return image


def _orientation(path: Path, image: Any) -> np.ndarray:
    """By stored axis: the canonical axis that it follows, and whether along or against it (1 or -1)."""
    import nibabel

    zooms = image.header.get_zooms()[:3]
    if np.isfinite(image.affine).all() and all(0 < length < math.inf for length in zooms):
        orientation_32 = np.asarray(nibabel.io_orientation(image.affine))
        if np.isfinite(orientation_32).all():
            return orientation_32
    raise ValueError(f"{path}: its orientation or spacing cannot be: {image.affine.tolist()}, {zooms}")


@lru_cache(maxsize=CACHED_HEADERS)
def _volume(path: Path, state: tuple[int, int]) -> Volume:
    """``find_volume``; ``state`` of the file, so that a changed one is read again."""
    return find_volume(path)


@lru_cache(maxsize=CACHED_VOLUMES)
def _values(path: Path, state: tuple[int, int]) -> np.ndarray:
    """float32, canonical axes."""
    import nibabel

    image = _open(path)
    try:
        stored = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: is cut short or damaged ({error}); replace or remove it") from None
    return np.asarray(nibabel.apply_orientation(stored, _orientation(path, image)))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=CACHED_VOLUMES)
def _own_limits(path: Path, state: tuple[int, int]) -> tuple[float, float]:
    return own_limits(_values(path, state), str(path))


def _slice(values: np.ndarray, axis: int, number: int) -> np.ndarray:
    """Rows x columns."""
    return np.take(values, number, axis=axis).T


def _png(path: Path, number: int, limits: tuple[float, float] | None) -> bytes:
    state = _state(path)
    found = VolumeSlice(_volume(path, state), number)
    limits = limits or _own_limits(path, state)
    pixels_HW = windowed(_slice(_values(path, state), found.volume.axis, number), limits)
    return gray_png(found.turn.apply(pixels_HW), found.turn, found.spacing, limits)


def _mask_values(path: Path, volume: Volume) -> np.ndarray:
    state = _state(path)
    check_one_grid(volume, _volume(path, state))
    values = _values(path, state)
    if np.isnan(values).any():
        raise ValueError(f"{path}: the mask has NaN in it; write 0 for normal voxels and more for anomalous ones")
    return values > 0


def _mask_png(path: Path, number: int, image: Path) -> bytes:
    found = VolumeSlice(_volume(image, _state(image)), number)
    marked_HW = _slice(_mask_values(path, found.volume), found.volume.axis, number)
    return png_bytes(found.turn.apply(marked_HW).astype(np.uint8) * 255)
