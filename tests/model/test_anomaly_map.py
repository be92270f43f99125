from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from unimmad.model.anomaly_map import anomaly_maps, cosine_distance, gaussian_blur, image_scores


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bilinear(map_hw: np.ndarray, size: int) -> np.ndarray:
    """Corners on corners: output pixel i lies at i (h - 1) / (size - 1) of the input."""
    height, width = map_hw.shape
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * (height - 1) / (size - 1), j * (width - 1) / (size - 1)
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            dy, dx = y - top, x - left
            result[i, j] = (
                map_hw[top, left] * (1 - dy) * (1 - dx)
                + map_hw[top, left + 1] * (1 - dy) * dx
                + map_hw[top + 1, left] * dy * (1 - dx)
                + map_hw[top + 1, left + 1] * dy * dx
            )
    return result


def test_a_map_is_the_root_of_the_summed_squares_of_all_levels_and_modalities():
    size, sample_of_token = 16, [0, 1, 1, 1, 2, 2]
    distances = [random(6, n, n, seed=n).abs() for n in (8, 4, 2)]
    maps = anomaly_maps(distances, torch.tensor(sample_of_token), batch=3, image_size=size)
    expected = np.zeros((3, size, size))
    for distance in distances:
        for token, sample in enumerate(sample_of_token):
            expected[sample] += bilinear(distance[token].double().numpy(), size) ** 2
    np.testing.assert_allclose(maps, np.sqrt(expected), rtol=1e-5, atol=1e-6)


def test_cosine_distance_is_0_for_the_same_direction_1_for_a_right_angle_2_for_the_opposite():
    target = random(1, 5, 3, 3)
    torch.testing.assert_close(cosine_distance(target, 7 * target), torch.zeros(1, 3, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_distance(target, -target), torch.full((1, 3, 3), 2.0))
    right = torch.zeros(1, 2, 1, 2)
    right[0, 0] = 3
    other = torch.zeros(1, 2, 1, 2)
    other[0, 1] = 0.5
    torch.testing.assert_close(cosine_distance(right, other), torch.ones(1, 1, 2))


@pytest.mark.parametrize("channels", [64, 256, 512])
def test_cosine_distance_is_never_below_0(channels):
    target = random(2, channels, 32, 32)
    plain = 1 - torch.nn.functional.cosine_similarity(target, 7 * target, dim=1)
    assert plain.min() < 0
    found = cosine_distance(target, 7 * target)
    assert found.min() == 0
    assert torch.equal(found[plain >= 0], plain[plain >= 0])


def test_cosine_distance_by_its_definition():
    a, b = random(2, 5, 3, 4, seed=1), random(2, 5, 3, 4, seed=2)
    expected = np.zeros((2, 3, 4))
    for t, y, x in np.ndindex(2, 3, 4):
        u, p = a[t, :, y, x].double().numpy(), b[t, :, y, x].double().numpy()
        expected[t, y, x] = 1 - (u @ p) / (np.linalg.norm(u) * np.linalg.norm(p))
    np.testing.assert_allclose(cosine_distance(a, b), expected, rtol=1e-5, atol=1e-6)


def test_cosine_distance_of_half_precision_is_float32():
    assert cosine_distance(random(1, 4, 2, 2).bfloat16(), random(1, 4, 2, 2).bfloat16()).dtype == torch.float32


def gaussian_window(size: int, sigma: float) -> np.ndarray:
    middle = (size - 1) / 2
    window = np.array(
        [
            [math.exp(-((y - middle) ** 2 + (x - middle) ** 2) / (2 * sigma**2)) for x in range(size)]
            for y in range(size)
        ]
    )
    return window / window.sum()


@pytest.mark.parametrize(("size", "sigma"), [(15, 4.0), (5, 1.0), (3, 20.0), (1, 4.0)])
def test_the_blur_is_a_gaussian_window_with_zeros_around(size, sigma):
    maps = random(2, 20, 24)
    window = gaussian_window(size, sigma)
    expected = [ndimage.convolve(m.double().numpy(), window, mode="constant", cval=0) for m in maps]
    np.testing.assert_allclose(gaussian_blur(maps, size, sigma), expected, rtol=1e-4, atol=1e-6)


def test_a_wide_window_is_scipys_gaussian_filter():
    maps = random(1, 32, 32)
    expected = ndimage.gaussian_filter(maps[0].double().numpy(), sigma=1.0, mode="constant", truncate=7)
    np.testing.assert_allclose(gaussian_blur(maps, 15, 1.0)[0], expected, rtol=1e-4, atol=1e-6)


def test_sigma_0_changes_nothing():
    maps = random(1, 9, 9)
    assert torch.equal(gaussian_blur(maps, 15, 0.0), maps)


@pytest.mark.parametrize(("size", "count"), [(64, 4), (256, 65), (128, 16), (16, 1), (800, 640)])
def test_an_images_score_is_the_mean_of_its_largest_thousandth(size, count):
    maps = random(2, size, size)
    expected = [np.sort(m.double().numpy().ravel())[-count:].mean() for m in maps]
    np.testing.assert_allclose(image_scores(maps, 0.001), expected, rtol=1e-5)


def test_the_whole_share_is_the_mean():
    maps = random(2, 8, 8)
    torch.testing.assert_close(image_scores(maps, 1.0), maps.mean(dim=(1, 2)))


@pytest.mark.parametrize(("size", "sigma"), [(12, 4.0), (40, 1.5)])
def test_a_mirrored_border_is_scipys(size, sigma):
    maps_BHW = torch.rand(2, size, size + 3, generator=torch.Generator().manual_seed(size))
    window = 2 * int(4 * sigma + 0.5) + 1
    expected = np.stack([ndimage.gaussian_filter(map_HW, sigma, truncate=4) for map_HW in maps_BHW.numpy()])
    torch.testing.assert_close(gaussian_blur(maps_BHW, window, sigma, "mirror"), torch.from_numpy(expected))


def test_a_pooled_score_is_the_largest_mean_of_a_window():
    map_HW = torch.zeros(8, 8)
    map_HW[2, 3] = 4.0
    map_HW[5:7, 5:7] = 3.0
    assert image_scores(map_HW[None], 0.001).item() == 4.0
    assert image_scores(map_HW[None], 0.001, pool=2).item() == 3.0
