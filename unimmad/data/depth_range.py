"""Which pixels of a depth image were measured, told by their values: NaN and infinity are not, nor is "no data".

Letters: H x W pixels.
"""

from __future__ import annotations

import numpy as np

from unimmad.data.index import Modality

MAX_DEPTH_METRES = 1e7
"""Nothing that is photographed lies farther: what does says "no data" (3.4e38, 1e38, 1e10), or the scale is wrong."""
NO_DATA = frozenset({9999.0, 32767.0, 32768.0, 65504.0, 65535.0, 99999.0, 999999.0})
"""Stored values that programs write for "no data", of either sign, and that could be a depth as well."""
NO_DATA_FACTOR = 10
"""One of ``NO_DATA`` is taken as such where all other pixels are smaller by this factor or more."""
_MOST_VALUES = 2
"""A value for "no data" is a constant, or one of either sign; more are wrong numbers."""


def no_data_values(stored_HW: np.ndarray, measured_HW: np.ndarray, modality: Modality, where: str) -> list[float]:
    """The finite values that stand for "no data".

    None of unsigned integers, whose scale bounds them: there the largest may be the farthest point just as well.

    Args:
        stored_HW: depth as stored.
        measured_HW: bool; the pixels that matter, all finite.
        modality: its scale counts.
        where: the file (and sample), for messages.

    Raises:
        ValueError: more than two different values are beyond ``MAX_DEPTH_METRES``.
    """
    if stored_HW.dtype.kind == "u" and modality.scale <= MAX_DEPTH_METRES:
        return []
    largest = np.iinfo(stored_HW.dtype).max if stored_HW.dtype.kind in "iu" else 1.0
    size_HW = np.abs(stored_HW, dtype=np.float64, where=measured_HW, out=np.zeros(stored_HW.shape))
    found = []
    beyond_HW = size_HW > MAX_DEPTH_METRES / modality.scale * largest
    if beyond_HW.any():
        found = np.unique(stored_HW[beyond_HW]).tolist()
        if len(found) > _MOST_VALUES:
            raise ValueError(
                f"{where}: {int(beyond_HW.sum())} pixels of {modality.name} lie beyond {MAX_DEPTH_METRES:g} m, from "
                f"{found[0]:g} to {found[-1]:g}: that is neither depth nor one value for 'no data'. The file is "
                f"damaged or the scale ({modality.scale:g} m) wrong; say --modality {modality.name}=depth:SCALE"
            )
        size_HW[beyond_HW] = 0
    top = float(size_HW.max())
    if stored_HW.dtype.kind != "u" and top in NO_DATA:
        top_HW = size_HW == top
        if size_HW.max(where=~top_HW, initial=0) * NO_DATA_FACTOR <= top:
            found += np.unique(stored_HW[top_HW]).tolist()
    return found
