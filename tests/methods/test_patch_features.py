"""Patch features: what the rules say, written plainly."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unimmad.methods.patch_features import joined_patches, patchcore_patches


def two_layers() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 6, 5, 7, generator=generator), torch.randn(2, 10, 3, 4, generator=generator)]


def averaged(values: np.ndarray, dims: int) -> np.ndarray:
    """Adaptive average pooling of a vector."""
    edges = [(i * len(values) // dims, -(-(i + 1) * len(values) // dims)) for i in range(dims)]
    return np.array([values[first:last].mean() for first, last in edges])


def resized(map_NChw: torch.Tensor, align_corners: bool) -> torch.Tensor:
    return F.interpolate(map_NChw, size=(5, 7), mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_patchcores_patches_are_windows_resized_and_then_averaged(align_corners: bool) -> None:
    layers = two_layers()
    patches_NhwD = patchcore_patches(layers, 8, 5, align_corners)
    assert patches_NhwD.shape == (2, 5, 7, 5)
    values = [F.unfold(layer, 3, padding=1).unflatten(2, layer.shape[2:]) for layer in layers]
    on_grid = [values[0].double().numpy(), resized(values[1], align_corners).double().numpy()]
    for place in np.ndindex(2, 5, 7):
        image, y, x = place
        of_layers = [averaged(value[image, :, y, x], 8) for value in on_grid]
        expected = averaged(np.concatenate(of_layers), 5)
        np.testing.assert_allclose(patches_NhwD[place].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_joined_patches_are_means_of_windows_side_by_side(align_corners: bool) -> None:
    layers = two_layers()
    patches_NhwD = joined_patches(layers, align_corners)
    assert patches_NhwD.shape == (2, 5, 7, 16)
    # The edge counts as zeros: a corner's mean is that of 4 values and 5 zeros.
    torch.testing.assert_close(patches_NhwD[1, 0, 0, :6], layers[0][1, :, :2, :2].sum((1, 2)) / 9)
    torch.testing.assert_close(patches_NhwD[0, 2, 3, :6], layers[0][0, :, 1:4, 2:5].mean((1, 2)))
    coarse = F.conv2d(layers[1], torch.full((10, 1, 3, 3), 1 / 9), padding=1, groups=10)
    torch.testing.assert_close(patches_NhwD[..., 6:], resized(coarse, align_corners).permute(0, 2, 3, 1))


def test_one_layer_needs_no_other_grid() -> None:
    layer = two_layers()[0]
    assert joined_patches([layer]).shape == (2, 5, 7, 6)
    assert patchcore_patches([layer], 8, 4).shape == (2, 5, 7, 4)
