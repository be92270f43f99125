"""Entropies and overlaps against SciPy and by hand; the CSV files hold them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from unimmad.report.expert_usage import ClassUsage
from unimmad.report.specialisation import (
    datasets_csv,
    entropy,
    gate_names,
    leaders_csv,
    overlap_csv,
    overlaps,
    specialisation,
)

GATES = ("level 1, 1 x 1", "level 1, 3 x 3")


def usage(dataset, class_name, counts_GL):
    counts_MGL = np.array([counts_GL])
    return ClassUsage(dataset, class_name, ("rgb",), counts_MGL, counts_MGL[:, 0].sum(axis=1))


@pytest.fixture
def found():
    """Two sets that share leader 1 of the first gate and nothing of the second; leader 3 is never used."""
    return specialisation(
        [
            usage("metal", "plate", [[4, 4, 0, 0], [8, 0, 0, 0]]),
            usage("metal", "bolt", [[4, 4, 0, 0], [0, 8, 0, 0]]),
            usage("brains", "upper", [[0, 40, 40, 0], [0, 0, 80, 0]]),
        ],
        GATES,
    )


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_entropy_is_shannons():
    share_SL = np.random.default_rng(0).dirichlet(np.ones(7), size=5)
    share_SL[0] = [1, 0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(entropy(share_SL), stats.entropy(share_SL, axis=1), atol=1e-12)


def test_overlap_is_one_less_the_jensen_shannon_divergence():
    share_CGL = np.random.default_rng(1).dirichlet(np.full(5, 0.4), size=(4, 3))
    found = overlaps(share_CGL)
    for row in range(4):
        for column in range(4):
            distances = [jensenshannon(share_CGL[row, g], share_CGL[column, g], base=2) for g in range(3)]
            expected = 1 - np.mean(np.square(np.nan_to_num(distances)))
            assert found[row, column] == pytest.approx(expected, abs=1e-9)


def test_leaders_are_described_by_who_uses_them(found):
    np.testing.assert_allclose(found.load_GL, [[0.25, 0.5, 0.25, 0], [0.25, 0.25, 0.5, 0]])
    np.testing.assert_allclose(found.leader_entropy_GL, [[0, 1, 0, np.nan], [0, 0, 0, np.nan]], atol=1e-12)
    np.testing.assert_allclose(found.dataset_share_GLD[0], [[1, 0], [0.5, 0.5], [0, 1], [0, 0]])


def test_data_sets_are_described_by_what_they_use(found):
    np.testing.assert_allclose(found.effective_leaders_GD, [[2, 2], [2, 1]])
    np.testing.assert_allclose(found.dataset_entropy_GD, [[0.5, 0.5], [0.5, 0]], atol=1e-12)


def test_classes_overlap_as_far_as_they_share_leaders(found):
    assert found.classes == ("metal/plate", "metal/bolt", "brains/upper")
    np.testing.assert_allclose(found.class_overlap_CC[0], [1, 0.5, 0.25], atol=1e-12)
    np.testing.assert_allclose(found.class_overlap_CC, found.class_overlap_CC.T)


def test_one_data_set_alone_has_no_entropy_over_data_sets():
    alone = specialisation([usage("metal", "plate", [[4, 4], [8, 0]])], GATES)
    np.testing.assert_array_equal(alone.leader_entropy_GL, [[0, 0], [0, np.nan]])


def test_the_csv_files_hold_the_numbers(found):
    leaders = read(leaders_csv(found))
    assert len(leaders) == 8
    assert leaders[1] == {
        "gate": "level 1, 1 x 1",
        "leader": "1",
        "load": "0.5",
        "entropy over datasets": "1",
        "share of metal": "0.5",
        "share of brains": "0.5",
    }
    assert leaders[3]["entropy over datasets"] == "n/a"
    datasets = read(datasets_csv(found))
    assert [(row["dataset"], row["gate"]) for row in datasets] == [(d, g) for d in ("metal", "brains") for g in GATES]
    assert [float(row["effective leaders"]) for row in datasets] == pytest.approx([2, 2, 2, 1])
    overlap = read(overlap_csv(found))
    assert [row["class"] for row in overlap] == list(found.classes)
    assert float(overlap[2]["metal/plate"]) == pytest.approx(0.25)


def test_gates_are_named_level_by_level():
    assert gate_names((1, 3), 2) == ("level 1, 1 x 1", "level 1, 3 x 3", "level 2, 1 x 1", "level 2, 3 x 3")
