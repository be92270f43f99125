"""A depth image as its modality reads it: where it was measured, metres, and its distances about their mean.

Letters: H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimmad.data.depth_range import metres_of, no_data_values
from unimmad.data.index import Modality

DEPTH_FACTOR = 100.0
"""Depth in metres about its foreground mean, times this, is of the order of 1 (method, recipe)."""


@dataclass(frozen=True)
class DepthImage:
    """One image, analysed once for all who ask."""

    metres_HW: NDArray[np.float64]
    """0 in the background."""
    measured_HW: NDArray[np.bool_]
    """The foreground."""
    no_data: tuple[float, ...]
    """Stored values that count as not measured for what they are (``no_data_values``)."""

    def centred(self) -> NDArray[np.float32]:
        """About the foreground's mean, times ``DEPTH_FACTOR``: centimetres; the background lies at 0, and all of it
        without any foreground."""
        if not self.measured_HW.any():
            return np.zeros(self.metres_HW.shape, dtype=np.float32)
        centred_HW = self.metres_HW - self.metres_HW[self.measured_HW].mean()
        centred_HW *= DEPTH_FACTOR
        centred_HW[~self.measured_HW] = 0.0
        return centred_HW.astype(np.float32)

    @property
    def no_data_note(self) -> str:
        """What to say of ``no_data``; empty where there is none."""
        named = " and ".join(f"{value:g}" for value in self.no_data)
        return f"pixels of {named} count as not measured" if named else ""


def read_depth(array: np.ndarray, modality: Modality, where: str = "depth") -> DepthImage:
    """Background are invalid and non-finite pixels, those of ``no_data_values``, and those where the last channel of an
    H x W x 2+ array (of real numbers) is not > 0.

    Args:
        array: from ``decode``.
        modality: of kind depth.
        where: the file (and sample), for messages.

    Raises:
        ValueError: channels or values that depth cannot have.
    """
    stored_HW = array if array.ndim == 2 else array[:, :, 0]
    measured_HW = np.isfinite(stored_HW)
    if array.ndim == 3 and array.dtype.kind == "f":
        measured_HW &= array[:, :, -1] > 0
    elif array.ndim == 3 and (array != array[:, :, :1]).any():
        raise ValueError(
            f"{where}: depth with {array.shape[2]} different channels of {array.dtype}, maybe colour-coded; "
            f"store depth in one channel, or say --modality {modality.name}=rgb"
        )
    if modality.invalid is not None:
        measured_HW &= stored_HW != modality.invalid
    if modality.disparity:
        measured_HW &= stored_HW > 0
    no_data = no_data_values(stored_HW, measured_HW, modality, where)
    for value in no_data:
        measured_HW &= stored_HW != value
    return DepthImage(metres_of(stored_HW, measured_HW, modality), measured_HW, tuple(no_data))
