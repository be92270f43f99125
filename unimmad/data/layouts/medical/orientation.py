"""How a slice lies in the patient, and turning it as radiologists look at it.

Directions are unit vectors in DICOM's frame of the patient: x to the left (L), y to the back (P), z to the head (S).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Plane = Literal["sagittal", "coronal", "axial", "projection"]
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""By the axis that a slice's normal follows."""
_UPRIGHT = {"sagittal": ((1, 1), (2, -1)), "coronal": ((0, 1), (2, -1)), "axial": ((0, 1), (1, 1))}
"""Axis and sign along which columns, and along which rows, are counted: the patient's right on the left, the front or
the head on top."""


@dataclass(frozen=True)
class Turn:
    """What makes a stored slice upright."""

    plane: Plane
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, stored_HW: np.ndarray) -> np.ndarray:
        """The slice (H x W, or W x H as stored) upright; contiguous."""
        turned_HW = stored_HW.T if self.transpose else stored_HW
        turned_HW = turned_HW[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.ascontiguousarray(turned_HW)

    def spacing(self, stored: tuple[float, float]) -> tuple[float, float]:
        """Millimetres between rows, and between columns, of the upright slice; of the stored one given."""
        return stored[::-1] if self.transpose else stored


AS_STORED = Turn("projection")
"""Of a radiograph, which has no place in the patient."""


def turn(along_columns: Sequence[float], along_rows: Sequence[float]) -> Turn:
    """The turn for a slice whose column numbers grow along one direction and whose row numbers along the other.

    An oblique slice is taken for the plane that it is nearest to.

    Raises:
        ValueError: the directions are not perpendicular unit vectors.
    """
    columns_3, rows_3 = np.asarray(along_columns, dtype=float), np.asarray(along_rows, dtype=float)
    lengths = np.array([columns_3 @ columns_3, rows_3 @ rows_3, 1 + columns_3 @ rows_3])
    if not np.allclose(lengths, 1, atol=0.01):
        raise ValueError(
            f"its orientation {columns_3.tolist()}, {rows_3.tolist()} is not two perpendicular unit vectors"
        )
    plane = PLANES[int(np.abs(np.cross(columns_3, rows_3)).argmax())]
    (column_axis, column_sign), (row_axis, row_sign) = _UPRIGHT[plane]
    transpose = bool(abs(columns_3[row_axis]) > abs(columns_3[column_axis]))
    if transpose:
        columns_3, rows_3 = rows_3, columns_3
    return Turn(
        plane,
        transpose,
        flip_rows=bool(rows_3[row_axis] * row_sign < 0),
        flip_columns=bool(columns_3[column_axis] * column_sign < 0),
    )
