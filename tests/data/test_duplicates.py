"""Exact and near duplicates among images of one class, which all look alike."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from unimmad.data.writing.duplicates import (
    HASH_VALUES,
    exact_duplicates,
    near_duplicates,
    perceptual_hash,
    pixel_digest,
)


def part(seed: int, height: int = 64, width: int = 80) -> np.ndarray:
    """One photograph of a part that looks the same in all, but for its surface and noise."""
    rows, columns = np.mgrid[:height, :width]
    draw = np.random.default_rng(seed)
    surface = Image.fromarray(draw.normal(0, 10, (8, 8)).astype(np.float32))
    pattern_HW = 110 + 25 * np.sin(columns / 5) + 15 * np.cos(rows / 7)
    pattern_HW += np.asarray(surface.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(pattern_HW[:, :, None] + draw.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def saved_again(image: np.ndarray, quality: int = 75) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def test_a_picture_saved_again_is_found_among_alike_ones_and_no_other() -> None:
    images = [part(seed) for seed in range(30)]
    small = np.asarray(Image.fromarray(images[4]).resize((60, 48), Image.Resampling.BILINEAR))
    brighter = np.clip(images[9] * 1.1 + 5, 0, 255).astype(np.uint8)
    copies = [saved_again(images[2]), small, brighter, images[11].astype(np.float32) / 255]
    hashes = np.stack([perceptual_hash(image) for image in (*images, *copies)])

    pairs = near_duplicates(hashes)

    assert {(pair.first, pair.second) for pair in pairs} == {(2, 30), (4, 31), (9, 32), (11, 33)}
    assert [pair.correlation for pair in pairs] == sorted((pair.correlation for pair in pairs), reverse=True)
    groups = ["a"] * 30 + ["a", "b", "b", "b"]
    assert [(pair.first, pair.second) for pair in near_duplicates(hashes, groups)] == [(2, 30)]


def test_two_images_of_a_class_are_compared_too() -> None:
    pair = np.stack([perceptual_hash(part(1)), perceptual_hash(saved_again(part(1)))])
    assert len(near_duplicates(pair)) == 1
    assert near_duplicates(np.zeros((0, HASH_VALUES), dtype=np.uint8)) == []


@pytest.mark.parametrize("value", [0, 7, 255])
def test_blank_images_are_not_near_each_other(value: int) -> None:
    blank = perceptual_hash(np.full((20, 20), value, dtype=np.uint8))
    assert (blank == 128).all()
    others = [perceptual_hash(part(seed)) for seed in range(5)]
    assert near_duplicates(np.stack([blank, blank, *others])) == []


def test_what_is_not_finite_counts_as_the_mean() -> None:
    depth = part(0)[:, :, 0].astype(np.float32)
    depth[0, 0] = np.inf
    depth[5:9] = np.nan
    assert perceptual_hash(depth).std() > 0
    assert (perceptual_hash(np.full((4, 4), np.nan)) == 128).all()


def test_equal_pixels_have_one_digest_however_they_are_stored() -> None:
    image = part(3)
    assert pixel_digest(image) == pixel_digest(image[:, ::-1].copy()[:, ::-1])
    others = [image[:, :, 0], image.astype(np.uint16), image.reshape(80, 64, 3), part(4)]
    digests = [pixel_digest(each) for each in (image, *others, image, image[:, :, 0])]
    assert exact_duplicates(digests) == [[0, 5], [1, 6]]


def test_ten_thousand_are_compared_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (10_000, HASH_VALUES), dtype=np.uint8)
    hashes[9_000] = hashes[17]
    start = time.process_time()
    assert [(pair.first, pair.second) for pair in near_duplicates(hashes)] == [(17, 9_000)]
    assert time.process_time() - start < 30
