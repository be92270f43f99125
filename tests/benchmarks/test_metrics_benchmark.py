"""The metrics benchmark: both ways give the same numbers, and its figures are those of what it ran."""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import pytest

from benchmarks import metrics as benchmark


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(words)


def test_the_table_has_the_growth_the_spilled_run_and_the_reference():
    table = benchmark.run(arguments("--images", "16", "--size", "64", "--repeats", "1"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:7]]
    assert [(row[0], row[1]) for row in rows] == [
        ("unimmad", "8"),
        ("unimmad", "8"),
        ("unimmad", "16"),
        ("unimmad, spilled to disk", "16"),
        ("scikit-learn + plain AUPRO", "16"),
    ]
    assert rows[-1][-1] == ""
    assert table.splitlines()[-1].endswith("times the CPU time")


def test_memory_beyond_the_input_is_below_6_bytes_a_pixel():
    images = benchmark.invented_images(48, 128, seed=0)
    peak = benchmark._peak_bytes(lambda: benchmark._ours(images))
    assert 4 < peak / images.maps_NHW.size < 6.5  # small sets have some fixed memory on top


def test_invented_images_are_one_percent_anomalous():
    images = benchmark.invented_images(20, 256, seed=1)
    assert 0.005 < (images.masks_NHW > 0).mean() < 0.02
    assert images.labels_N.sum() == 10
    assert not images.masks_NHW[images.labels_N == 0].any()


def test_the_reference_agrees_and_a_difference_is_refused():
    images = benchmark.invented_images(8, 48, seed=2)
    images.maps_NHW[:] = np.round(images.maps_NHW * 8)  # many ties
    plain = benchmark._cost("reference", images, benchmark.reference_metrics, 1, memory=False)
    ours = benchmark._cost("ours", images, benchmark._ours, 1)
    benchmark._check_equal(ours, plain)
    wrong = dataclasses.replace(ours, metrics={**ours.metrics, "AUPRO": 0.5})
    with pytest.raises(ValueError, match=r"AUPRO is 0\.5 by ours"):
        benchmark._check_equal(wrong, plain)


def test_sizes_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="at least 8 --images"):
        benchmark.run(arguments("--images", "3"))
