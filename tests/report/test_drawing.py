from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from unimmad.report.drawing import colour_limits, denormalise, draw_contour, heat_limits, laid_over

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize("kind", ["rgb", "gray"])
def test_denormalise_undoes_the_normalisation(kind):
    picture_HWC = np.random.default_rng(0).random((5, 7, 3))
    normalised_CHW = torch.from_numpy(((picture_HWC - MEAN) / STD).transpose(2, 0, 1))
    found = denormalise(normalised_CHW, kind)
    np.testing.assert_allclose(found, picture_HWC, atol=1e-6)


def test_denormalise_stays_within_range():
    found = denormalise(np.full((3, 2, 2), 50.0), "rgb")
    assert found.max() == found.min() == 1.0


def test_depth_is_stretched_and_coloured_whatever_its_unit():
    depth_HW = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    found = denormalise(np.stack([depth_HW] * 3), "depth")
    assert found.shape == (3, 4, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(denormalise(np.stack([depth_HW * 700 - 40] * 3), "depth"), found, atol=0.02)
    assert np.abs(found[0, 0] - found[-1, -1]).max() > 0.3


def test_constant_depth_is_drawn_in_one_colour():
    found = denormalise(np.full((3, 4, 4), 2.0), "depth")
    assert np.isfinite(found).all()
    assert np.ptp(found.reshape(-1, 3), axis=0).max() == 0


def test_colour_limits_are_common_and_leave_out_infinities():
    assert colour_limits([np.array([[1.0, np.inf]]), np.array([[-2.0, -np.inf]])]) == (-2.0, 1.0)


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0, 0.0], [np.inf, np.inf]])
def test_colour_limits_are_never_equal(values):
    low, high = colour_limits([np.array([values])])
    assert np.isfinite([low, high]).all()
    assert high > low


def test_heat_maps_go_from_the_median_of_all_to_the_largest_value():
    maps = [np.array([[1.0, 2.0, np.inf]]), np.array([[3.0, 4.0], [9.0, -np.inf]])]
    assert heat_limits(maps) == (3.0, 9.0)
    low, high = heat_limits([np.full((2, 2), np.inf)])
    assert np.isfinite([low, high]).all()
    assert high > low


def test_overlay_shows_the_image_where_the_map_is_low_and_the_map_where_it_is_high():
    image_HWC = np.random.default_rng(1).random((2, 3, 3))
    map_HW = np.array([[0.0, -np.inf, 0.0], [1.0, np.inf, 2.0]])
    found = laid_over(image_HWC, map_HW, (0.0, 1.0))
    grey = image_HWC.mean(axis=2, keepdims=True).repeat(3, axis=2)
    np.testing.assert_allclose(found[0], grey[0])
    assert np.abs(found[1] - grey[1]).max(axis=1).min() > 0.3
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(("mask", "contours"), [(None, 0), (np.zeros((4, 5), bool), 0), (np.ones((4, 5), bool), 1)])
def test_a_contour_is_drawn_where_there_is_a_region(mask, contours):
    ax = Figure().add_subplot()
    ax.imshow(np.zeros((4, 5)))
    limits = ax.get_xlim(), ax.get_ylim()
    draw_contour(ax, mask)
    assert len(ax.collections) == contours
    assert (ax.get_xlim(), ax.get_ylim()) == limits
