"""What the stored values of a picture mean: 0-1 by their number type, or by a range that was given or found."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from unimmad.data.index import ANY_DTYPE, Modality, ValueRange

SMALL_SHARE = 1 / 8
"""Training images that use less of their number type's range hold fewer bits than it: their own range is taken."""
MIXED_SHARE = 1 / 4
"""An image that uses less of the range may hold fewer bits than the others."""
_DIGITS = 2
"""Of a range that was found in real numbers."""


def range_for(dtype: np.dtype, modality: Modality) -> ValueRange | None:
    """How images of ``dtype`` are read; None: by the whole range of their type (0-1 of real numbers)."""
    for item in modality.ranges:
        if item.dtype == dtype.name or (item.dtype == ANY_DTYPE and _holds(dtype, item.high)):
            return item
    return None


def _holds(dtype: np.dtype, value: float) -> bool:
    return dtype.kind == "f" or value <= np.iinfo(dtype).max


def whole_range(dtype: np.dtype) -> float:
    """The value that is read as 1 where nothing else is said: the type's largest, of real numbers 1."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def found_range(dtype: np.dtype, high: float) -> ValueRange | None:
    """The range of training images of ``dtype`` whose largest value is ``high``; None where they use enough of it.

    Integers: to the largest value of as many bits; real numbers: to ``high``, rounded up to two digits.
    """
    if not 0 < high < SMALL_SHARE * whole_range(dtype):
        return None
    if dtype.kind == "f":
        step = 10.0 ** (math.floor(math.log10(high)) - _DIGITS + 1)
        return ValueRange(dtype=dtype.name, low=0, high=float(f"{math.ceil(high / step - 1e-9) * step:.{_DIGITS}g}"))
    return ValueRange(dtype=dtype.name, low=0, high=2 ** int(high).bit_length() - 1)


def unit_range(array: np.ndarray, modality: Modality, where: str) -> np.ndarray:
    """The values as uint8 (read as 0-255), or float32 in 0-1.

    Raises:
        ValueError: a number type or values of no known meaning.
    """
    given = range_for(array.dtype, modality)
    if given is not None:
        return _in_range(array, given, modality, where)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array / np.float32(65535)).astype(np.float32)
    say = f"say what they mean, --modality {modality.name}={modality.kind}:LOW:HIGH"
    if array.dtype.kind != "f":
        raise ValueError(
            f"{where}: {modality.kind} values are {array.dtype}; store 8 or 16 bit unsigned, or reals in 0-1, or {say}"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{where}: {modality.kind} values go from {low:g} to {high:g}; real numbers must lie in 0-1. "
            f"Rescale them, {say}, or say --modality {modality.name}=depth if they are distances"
        )
    return array.astype(np.float32)


def _in_range(array: np.ndarray, given: ValueRange, modality: Modality, where: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: {modality.kind} values are not all finite; replace NaN and infinity by numbers")
    exact = np.float32 if array.dtype.itemsize <= 2 else np.float64
    values: NDArray[np.floating] = array.astype(exact)
    return np.clip((values - given.low) / (given.high - given.low), 0, 1).astype(np.float32)


def beyond_range_note(array: np.ndarray, modality: Modality) -> str:
    """What to say of a picture that its modality's range does not fit; empty where nothing."""
    given = range_for(array.dtype, modality)
    trained = [item for item in modality.ranges if item.dtype != ANY_DTYPE]
    if given is None and trained:
        return (
            f"{modality.name}: values of {array.dtype.name} are read by their type's whole range, since training found "
            f"{listed_ranges(trained)} only in other types"
        )
    if given is None and array.dtype == np.uint8:  # a dark picture is a dark picture
        return ""
    given = given or ValueRange(dtype=array.dtype.name, low=0, high=whole_range(array.dtype))
    low, high = float(array.min()), float(array.max())
    if given.low <= low and high <= given.high:
        few = 0 < high - given.low <= MIXED_SHARE * (given.high - given.low) * (1 + 1e-3)
        if given.dtype == ANY_DTYPE or not few:  # who says a range knows that an image may use little of it
            return ""
        return (
            f"{modality.name}: values of {array.dtype.name} use at most a quarter of the range {given.low:g} to "
            f"{given.high:g} that they are read by, and so are dark; are those of training so, too?"
        )
    return f"{modality.name}: values from {low:g} to {high:g} are clipped to the range {given.low:g} to {given.high:g}"


def listed_ranges(ranges: list[ValueRange]) -> str:
    return ", ".join(f"{item.dtype} {item.low:g}-{item.high:g}" for item in ranges)
