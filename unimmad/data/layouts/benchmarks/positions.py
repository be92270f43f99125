"""Maps of 3-D positions: reading them, and telling an object from the plane it lies on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from unimmad.data.decode import decode_image
from unimmad.data.decode_limits import read_image_file
from unimmad.data.depth_range import MAX_DEPTH_METRES

BORDER_PIXELS = 10
"""The object lies in the middle: what is measured this close to the picture's edge shows the plane."""
INLIER_METRES = 0.004
BACKGROUND_METRES = 0.005
"""The distances that published preparations of MVTec 3D-AD use for the fit and for the cut."""
MAX_BORDER_POINTS = 4096
TRIALS = 256
MIN_INLIER_SHARE = 0.3
"""Where fewer border points agree there is no plane to remove."""
SPECK_SHARE = 0.01
"""Pieces smaller than this share of the largest are noise of the plane, not of the object."""


def read_positions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """H x W x 3 positions in metres, and where the sensor measured (bool, H x W): not where all three are 0 or any is
    not finite or farther than anything.

    Raises:
        ValueError: the file holds something else.
    """
    positions_HW3 = _positions(path)
    near_HW = (np.abs(positions_HW3) <= MAX_DEPTH_METRES).all(axis=2)  # which NaN is not
    return positions_HW3, (positions_HW3 != 0).any(axis=2) & near_HW


def read_height(path: Path) -> np.ndarray:
    """float32, H x W: the third channel alone, as stored, for files whose other two may be anything.

    NaN where it was not measured: not finite, farther than anything, or 0 beside two zeros.

    Raises:
        ValueError: the file holds something else, or nothing was measured.
    """
    positions_HW3 = _positions(path)
    measured_HW = (np.abs(positions_HW3[:, :, 2]) <= MAX_DEPTH_METRES) & (positions_HW3 != 0).any(axis=2)
    if not measured_HW.any():
        raise ValueError(f"{path}: none of its points was measured; replace or remove it")
    return np.where(measured_HW, positions_HW3[:, :, 2], np.nan).astype(np.float32)


def _positions(path: Path) -> np.ndarray:
    positions_HW3 = decode_image(read_image_file(path), path.suffix.lower(), str(path), planes=True)
    if positions_HW3.ndim != 3 or positions_HW3.shape[2] != 3 or positions_HW3.dtype.kind != "f":
        raise ValueError(
            f"{path}: {positions_HW3.dtype} of shape {positions_HW3.shape}; wanted H x W x 3, real numbers. "
            "Rename the folder if it holds something else than positions"
        )
    return positions_HW3


def object_mask(positions_HW3: np.ndarray, measured_HW: np.ndarray) -> np.ndarray:
    """Where the object is: measured, off the plane seen along the picture's border, and no speck.

    Args:
        positions_HW3: in metres.
        measured_HW: bool; where they mean something.

    Returns:
        bool, H x W; ``measured_HW`` where no plane is found.
    """
    border_HW = measured_HW.copy()
    border_HW[BORDER_PIXELS:-BORDER_PIXELS, BORDER_PIXELS:-BORDER_PIXELS] = False
    plane = fit_plane(positions_HW3[border_HW].astype(np.float64))
    if plane is None:
        return measured_HW
    normal_3, offset = plane
    off_plane_HW = np.abs(positions_HW3 @ normal_3 - offset) >= BACKGROUND_METRES
    return _without_specks(off_plane_HW & measured_HW)


def fit_plane(points_N3: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The plane most points agree on: RANSAC over triples, then least squares over its inliers.

    The triples are drawn with a fixed seed: the same points give the same plane.

    Returns:
        Unit normal and offset (normal . point = offset), or None where too few points agree.
    """
    points_N3 = points_N3[:: -(-len(points_N3) // MAX_BORDER_POINTS) or 1]
    if len(points_N3) < 3:
        return None
    corners_T33 = points_N3[np.random.default_rng(0).integers(len(points_N3), size=(TRIALS, 3))]
    normals_T3 = np.cross(corners_T33[:, 1] - corners_T33[:, 0], corners_T33[:, 2] - corners_T33[:, 0])
    lengths_T = np.linalg.norm(normals_T3, axis=1)
    usable_T = lengths_T > 0
    if not usable_T.any():
        return None
    normals_T3 = normals_T3[usable_T] / lengths_T[usable_T, None]
    offsets_T = (normals_T3 * corners_T33[usable_T, 0]).sum(axis=1)
    near_NT = np.abs(points_N3 @ normals_T3.T - offsets_T) < INLIER_METRES
    inliers_N = near_NT[:, near_NT.sum(axis=0).argmax()]
    if inliers_N.mean() < MIN_INLIER_SHARE:
        return None
    return _least_squares_plane(points_N3[inliers_N])


def _least_squares_plane(points_N3: np.ndarray) -> tuple[np.ndarray, float]:
    centre_3 = points_N3.mean(axis=0)
    normal_3 = np.linalg.svd(points_N3 - centre_3, full_matrices=False)[2][-1]
    return normal_3, float(normal_3 @ centre_3)


def _without_specks(marked_HW: np.ndarray) -> np.ndarray:
    pieces_HW, count = ndimage.label(marked_HW, structure=np.ones((3, 3)))
    if count == 0:
        return marked_HW
    sizes = np.bincount(pieces_HW.ravel())
    sizes[0] = 0
    return (sizes >= SPECK_SHARE * sizes.max())[pieces_HW] & marked_HW
