"""The measured table's many draws at once are the monitor's own numbers."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from tools.drift_table import DISTURBANCES, highest_capital
from unimmad.monitoring.evidence import on_grid
from unimmad.monitoring.streams import Place, Stream, StreamName


def test_the_capital_of_many_draws_is_each_streams():
    rng = np.random.default_rng(0)
    values_DN = np.round(rng.normal(0, 1, (3, 40)), 1)
    name = StreamName("a/b", ("rgb",), "x")
    draw = random.Random(str(name))
    between = [draw.random() for _ in range(30)]
    found_D = highest_capital(values_DN, 10, np.tile(between, (3, 1)))
    for values_N, found in zip(values_DN, found_D, strict=True):
        stream, highest = Stream(name, 1e9, Counter(map(on_grid, values_N[:10].tolist()))), 1.0
        for number, value in enumerate(values_N[10:].tolist()):
            stream.add(value, Place(number, "", ""))
            highest = max(highest, stream.evidence.capital)
        assert found == pytest.approx(highest)


def test_disturbances_keep_an_images_size_and_type():
    image_HWC = np.random.default_rng(0).integers(0, 255, (20, 256, 3), dtype=np.uint8)
    for _, change in DISTURBANCES.values():
        for image in (image_HWC, image_HWC[:, :, 0]):
            changed = change(image, 0)
            assert (changed.shape, changed.dtype) == (image.shape, image.dtype)
            assert (changed != image).any()
