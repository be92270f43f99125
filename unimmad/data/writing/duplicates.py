"""Samples that are in a dataset twice: the same pixels, or the same picture saved again.

A part photographed from one place looks alike in every image, so a hash of what is seen tells nothing there. Two
images count as nearly the same where they depart in the same way from what all of their class have in common.

Letters: N images, K values of a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimmad.data.prepare import LUMINANCE

HASH_SIDE = 16
HASH_VALUES = HASH_SIDE**2
NEAR = 0.98
"""Correlation from which on two images count as nearly the same.

Photographs of tiles, boards, roads and brains reach 0.985 when they are saved again as JPEG of quality 75 or in three
quarters of their size; others of their class reach it where they show the same thing, such as neighbouring slices.
"""
_LEVELS_A_DEVIATION = 32
_MIDDLE = 128
_BLOCK = 1024
"""Images compared with all others at once: bounds the memory."""
_SHRINKAGE = 2
"""A class's mean of N images counts by N / (N + this): of two images it would be the images themselves."""


@dataclass(frozen=True)
class NearPair:
    """Two images that are nearly the same, by their places in the list; ``first`` is the lower one."""

    first: int
    second: int
    correlation: float


@dataclass(frozen=True)
class Look:
    """What a sample is compared by."""

    digest: str
    """Hexadecimal: of the pixels of all its images; empty where each of them is of one value, and shows nothing."""
    hash: str
    """Hexadecimal: ``perceptual_hash`` of its first image."""


def look_of(images: Mapping[str, NDArray]) -> Look:
    """Of a sample's decoded images, by modality name."""
    hash_ = perceptual_hash(next(iter(images.values()))).tobytes().hex()
    if all(map(_is_blank, images.values())):
        return Look("", hash_)
    digest = hashlib.blake2b(digest_size=16)
    for name, array in images.items():
        digest.update(f"{name!r} ".encode() + pixel_digest(array))
    return Look(digest.hexdigest(), hash_)


def _is_blank(image: NDArray) -> bool:
    return bool(np.array_equal(image, np.broadcast_to(image[:1, :1], image.shape), equal_nan=image.dtype.kind == "f"))


def pixel_digest(array: NDArray) -> bytes:
    """16 bytes that are the same for equal pixels (shape and number type, too), however they were encoded."""
    digest = hashlib.blake2b(f"{array.shape} {array.dtype.str}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def perceptual_hash(image: NDArray) -> NDArray[np.uint8]:
    """What an image looks like from afar: its brightness in 16 x 16 squares, about its mean, by its spread.

    Args:
        image: H x W or H x W x channels of any numeric type and range; what is not finite counts as the mean.

    Returns:
        uint8, K = 256 values; 128 is the image's mean, 32 levels are one standard deviation. All 128 where the image
        is of one value.
    """
    grey_HW = _grey(image)
    finite_HW = np.isfinite(grey_HW)
    if not finite_HW.all():
        grey_HW = np.where(finite_HW, grey_HW, grey_HW[finite_HW].mean() if finite_HW.any() else 0)
    squares = np.asarray(
        Image.fromarray(grey_HW).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), dtype=np.float64
    )
    spread = squares.std()
    if not spread > 1e-6 * max(1.0, float(np.abs(squares).max())):
        return np.full(HASH_VALUES, _MIDDLE, dtype=np.uint8)
    levels = _MIDDLE + _LEVELS_A_DEVIATION * (squares - squares.mean()) / spread
    return np.rint(levels).clip(0, 255).astype(np.uint8).ravel()


def _grey(image: NDArray) -> NDArray[np.float32]:
    if image.ndim == 2 or image.shape[2] == 2:  # a value and its foreground, or an alpha channel
        return image.reshape(*image.shape[:2], -1)[:, :, 0].astype(np.float32)
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image[:, :, :3])).convert("L"), dtype=np.float32)
    return image[:, :, :3].astype(np.float32) @ np.array(LUMINANCE, dtype=np.float32)


def exact_duplicates(digests: Sequence[Hashable]) -> list[list[int]]:
    """The places of digests that are equal, at least two a list, by the first place of each."""
    places: dict[Hashable, list[int]] = {}
    for number, digest in enumerate(digests):
        places.setdefault(digest, []).append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def near_duplicates(
    hashes_NK: NDArray[np.uint8], groups: Sequence[Hashable] | None = None, least: float = NEAR
) -> list[NearPair]:
    """Pairs of images of one group that are nearly the same.

    Takes time by the square of a group's size: 10,000 images a few seconds. Leave out all but one of
    each set of exact duplicates, which would pull the group's mean towards them.

    Args:
        hashes_NK: of ``perceptual_hash``, one a row.
        groups: of each image, what it is compared within, such as its class; None: all are one group.
        least: correlation from which on two are nearly the same.

    Returns:
        The pairs, the most alike first.
    """
    hashes_NK = np.asarray(hashes_NK, dtype=np.uint8).reshape(-1, HASH_VALUES)
    of_group: dict[Hashable, list[int]] = {}
    for number in range(len(hashes_NK)):
        of_group.setdefault(None if groups is None else groups[number], []).append(number)
    pairs = [pair for places in of_group.values() for pair in _near_pairs(hashes_NK, np.array(places), least)]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _near_pairs(hashes_NK: NDArray[np.uint8], places: NDArray[np.int_], least: float) -> Iterator[NearPair]:
    """Those of one group; ``places`` are its rows, ascending."""
    own_NK = _departures(hashes_NK[places])
    for start in range(0, len(places), _BLOCK):
        alike = own_NK[start : start + _BLOCK] @ own_NK[start:].T
        for first, second in np.argwhere(np.triu(alike >= least, k=1)):
            correlation = min(1.0, float(alike[first, second]))
            yield NearPair(int(places[start + first]), int(places[start + second]), correlation)


def _departures(hashes_NK: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What each hash has that its group has not, of length 1; zero where that is nothing."""
    values_NK = hashes_NK.astype(np.float32) - _MIDDLE
    count = len(values_NK)
    own_NK = values_NK - values_NK.mean(axis=0) * (count / (count + _SHRINKAGE))
    own_NK -= own_NK.mean(axis=1, keepdims=True)
    length_N1 = np.linalg.norm(own_NK, axis=1, keepdims=True)
    # An image of one value departs from its class by what the class has: all such would be alike.
    blank_N1 = (hashes_NK == _MIDDLE).all(axis=1, keepdims=True) | (length_N1 < 1)
    return np.where(blank_N1, 0, own_NK / np.maximum(length_N1, 1)).astype(np.float32)
