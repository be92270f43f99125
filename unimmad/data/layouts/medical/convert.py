"""Scans as the pictures that shards of them hold, for what takes pictures only, such as prediction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unimmad.data.layouts.medical.dicom import find_slice, is_dicom
from unimmad.data.layouts.medical.nifti import find_volume, is_nifti, stem
from unimmad.data.layouts.medical.slices import Slice


def png_slices(path: Path, limits: tuple[float, float] | None = None) -> Iterator[tuple[str, bytes]]:
    """Each slice of a scan as the layout ``medical`` writes it: gray PNG of 16 bits, upright, in a window.

    Args:
        path: a DICOM file or a NIfTI volume.
        limits: what becomes black and what white, in the scan's units: center - width / 2 and center + width / 2 of
            the window that the training images had. None: a DICOM file's own window, a volume's own range.

    Yields:
        A name for the slice, and its PNG's bytes.

    Raises:
        ValueError: neither of the two, or a file that is refused.
    """
    if is_nifti(path):
        for found in find_volume(path).slices():
            yield f"{stem(path)}-{found.number:04d}", found.image(limits).read()
    elif is_dicom(path):
        yield path.stem, _own(find_slice(path), limits)
    else:
        raise ValueError(f"{path}: is neither DICOM nor NIfTI")


def _own(found: Slice, limits: tuple[float, float] | None) -> bytes:
    if limits is None:
        if found.window is None:
            raise ValueError(f"{found.path}: has no window; give limits")
        center, width = found.window
        limits = center - width / 2, center + width / 2
    return found.image(limits).read()
