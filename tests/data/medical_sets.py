"""Small scans, written by pydicom and nibabel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHAPE = (20, 16, 5)
"""Voxels from right to left, from front to back, from feet to head."""
SPACING = (0.8, 1.5, 4.0)
"""Millimetres along these."""
AXIAL = (1, 0, 0, 0, 1, 0)
RAW = [[-0.8, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]]
"""The affine of a volume whose axes are those of ``SHAPE``."""


def volume(seed: int) -> np.ndarray:
    """Hounsfield units, int16, in the order of ``SHAPE``."""
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE, dtype=np.int16)


def lesion() -> np.ndarray:
    """In slices 1 and 2."""
    marked = np.zeros(SHAPE, dtype=np.uint8)
    marked[3:7, 5:8, 1:3] = 1
    return marked


def write_dicom(
    path: Path, stored: np.ndarray, orientation: Sequence[float] = AXIAL, deflated: bool = False, **elements: Any
) -> Path:
    """One slice: H x W as stored, 16 bits unsigned, its values 1000 less (Hounsfield units).

    ``elements`` are changed, or, where None, left out.
    """
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.SeriesInstanceUID = "CT", generate_uid(entropy_srcs=[str(path.parent)])
    found.PatientID = found.SeriesInstanceUID[-16:]
    found.Rows, found.Columns = stored.shape
    found.PixelSpacing = [SPACING[1], SPACING[0]]
    found.ImageOrientationPatient = list(orientation)
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 0
    found.RescaleIntercept, found.RescaleSlope = -1000, 1
    found.WindowCenter, found.WindowWidth = 40, 400
    for name, value in elements.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    found.PixelData = (stored.astype(np.int32) + 1000).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, found, enforce_file_format=True)
    return path


def write_nifti(path: Path, values: np.ndarray, axes: str = "LPS", affine: Any = None) -> Path:
    """A volume in the order of ``SHAPE``, stored with its axes leading to ``axes``."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(values, np.array(RAW if affine is None else affine, dtype=float))
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    turned = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turned), path)
    return path


def make_medical(root: Path, class_name: str = "liver") -> Path:
    """Volumes of two modalities: one to train on, one to calibrate, a normal one and one with a lesion to test."""
    for seed, part in enumerate(("train/good", "calibration/good", "test/good", "test/tumor")):
        for name in ("t1", "flair"):
            write_nifti(root / class_name / part / name / "p1.nii.gz", np.maximum(volume(seed), 0))
    write_nifti(root / class_name / "ground_truth/tumor/p1.nii.gz", lesion())
    return root
