"""What the stored values of a depth image mean: metres, and "no data", which like NaN and infinity was not measured.

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


def largest_value(dtype: np.dtype) -> float:
    """What integers are divided by before ``Modality.scale``; 1 of real numbers."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def metres_of(stored_HW: np.ndarray, measured_HW: np.ndarray, modality: Modality) -> np.ndarray:
    """Depth in metres: float64, H x W, 0 where ``measured_HW`` (bool) is not.

    A disparity whose ``unit`` is not known is read by 1.
    """
    depth_HW = np.where(measured_HW, stored_HW, 0).astype(np.float64)  # what is beyond all would overflow
    if modality.disparity:
        return np.divide(modality.unit or 1.0, depth_HW, out=depth_HW, where=measured_HW)
    if modality.unit is not None:
        return depth_HW * modality.unit
    depth_HW /= largest_value(stored_HW.dtype)
    depth_HW *= modality.scale
    return depth_HW


def _reading(dtype: np.dtype, modality: Modality) -> str:
    """Number types of one reading mean the same by the same value."""
    return "real numbers" if dtype.kind == "f" else "integers" if modality.unit is not None else dtype.name


def check_dtype(dtype: np.dtype, modality: Modality, where: str) -> str:
    """Hold an image's number type against those that the model was trained on.

    Returns:
        A note where reals stand for integers or the other way round, whose unit is known; empty where all is well.

    Raises:
        ValueError: the same value would mean another distance.
    """
    known = [np.dtype(name) for name in modality.dtypes]
    if modality.kind != "depth" or not known or dtype in known:
        return ""
    if _reading(dtype, modality) in {_reading(item, modality) for item in known}:
        return ""
    named = " and ".join(modality.dtypes)
    if modality.unit is None:
        raise ValueError(
            f"{where}: {modality.name} values are {dtype.name}, but {named} in training, where they mean other "
            f"distances; store them alike, or write the shards with --modality {modality.name}=depth:UNIT"
        )
    per_value = f"{modality.unit:g} m over the value" if modality.disparity else f"{modality.unit:g} m"
    return f"{modality.name}: values are {dtype.name}, but {named} in training; each 1 counts as {per_value}"


def no_data_values(stored_HW: np.ndarray, measured_HW: np.ndarray, modality: Modality, where: str) -> list[float]:
    """The finite values that stand for "no data".

    None of unsigned integers, whose scale bounds them: there the largest may be the farthest point just as well.

    Args:
        stored_HW: depth as stored.
        measured_HW: bool; the pixels that matter, all finite.
        modality: its scale or unit counts.
        where: the file (and sample), for messages.

    Raises:
        ValueError: more than two different values are beyond ``MAX_DEPTH_METRES``.
    """
    largest = largest_value(stored_HW.dtype)
    farthest = modality.scale if modality.unit is None else modality.unit * largest
    if modality.disparity or (stored_HW.dtype.kind == "u" and farthest <= MAX_DEPTH_METRES):
        return []
    size_HW = np.abs(stored_HW, dtype=np.float64, where=measured_HW, out=np.zeros(stored_HW.shape))
    found = []
    beyond_HW = size_HW > MAX_DEPTH_METRES / farthest * largest
    if beyond_HW.any():
        found = np.unique(stored_HW[beyond_HW]).tolist()
        if len(found) > _MOST_VALUES:
            raise ValueError(
                f"{where}: {int(beyond_HW.sum())} pixels of {modality.name} lie beyond {MAX_DEPTH_METRES:g} m, from "
                f"{found[0]:g} to {found[-1]:g}: that is neither depth nor one value for 'no data'. The file is "
                f"damaged or its unit ({farthest / largest:g} m) wrong; say --modality {modality.name}=depth:UNIT"
            )
        size_HW[beyond_HW] = 0
    top = float(size_HW.max())
    if stored_HW.dtype.kind != "u" and top in NO_DATA:
        top_HW = size_HW == top
        if size_HW.max(where=~top_HW, initial=0) * NO_DATA_FACTOR <= top:
            found += np.unique(stored_HW[top_HW]).tolist()
    return found
