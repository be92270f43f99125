import numpy as np
from disk_sets import positions_on_plane

from unimmad.data.layouts.benchmarks.positions import fit_plane, object_mask


def test_plane_among_outliers() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(-0.2, 0.2, (600, 3))
    points[:400, 2] = 0.4 + 0.3 * points[:400, 0] - 0.1 * points[:400, 1] + rng.normal(0, 3e-4, 400)
    plane = fit_plane(points)
    assert plane is not None
    normal, offset = plane
    true = np.array([0.3, -0.1, -1.0]) / np.linalg.norm([0.3, -0.1, -1.0])
    assert abs(abs(normal @ true) - 1) < 1e-5
    np.testing.assert_allclose(points[:400] @ normal, offset, atol=2e-3)


def test_no_plane() -> None:
    rng = np.random.default_rng(0)
    assert fit_plane(np.zeros((0, 3))) is None
    assert fit_plane(np.ones((50, 3))) is None
    assert fit_plane(rng.uniform(-1, 1, (500, 3))) is None


def test_everything_counts_without_a_plane() -> None:
    positions = np.random.default_rng(0).uniform(0.3, 2, (40, 40, 3))
    measured = np.ones((40, 40), dtype=bool)
    measured[0] = False
    np.testing.assert_array_equal(object_mask(positions, measured), measured)


def test_specks_are_no_object() -> None:
    positions = positions_on_plane(size=90)
    positions[15:17, 70:73, 2] -= 0.02  # noise: 6 pixels against 900
    positions[70:80, 12:22, 2] -= 0.02  # a broken-off piece: 100
    found = object_mask(positions, (positions != 0).any(axis=2))
    expected = np.zeros((90, 90), dtype=bool)
    expected[30:60, 30:60] = True
    expected[45, 45] = False
    expected[70:80, 12:22] = True
    np.testing.assert_array_equal(found, expected)


def test_the_same_points_give_the_same_mask() -> None:
    positions = positions_on_plane()
    measured = (positions != 0).any(axis=2)
    np.testing.assert_array_equal(object_mask(positions, measured), object_mask(positions.copy(), measured))
