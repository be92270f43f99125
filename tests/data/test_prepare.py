import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from unimmad.data.depth_image import read_depth
from unimmad.data.index import Modality
from unimmad.data.prepare import IMAGENET_MEAN, IMAGENET_STD, check_fits, prepare

RGB = Modality(name="rgb", slot=0, kind="rgb")
GRAY = Modality(name="t1", slot=0, kind="gray")
DEPTH = Modality(name="z", slot=0, kind="depth", scale=0.5, invalid=0.0)
METRES = Modality(name="z", slot=0, kind="depth")


def denormalised(image_CHW: torch.Tensor) -> np.ndarray:
    std, mean = torch.tensor(IMAGENET_STD)[:, None, None], torch.tensor(IMAGENET_MEAN)[:, None, None]
    return (image_CHW * std + mean).numpy()


def test_rgb_is_pillow_bilinear_and_normalised() -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(array).resize((16, 16), Image.Resampling.BILINEAR))
    image = prepare(array, RGB, 16)
    assert image.dtype == torch.float32
    assert image.shape == (3, 16, 16)
    np.testing.assert_allclose(denormalised(image), resized.transpose(2, 0, 1) / 255, atol=1e-6)


def test_gray_of_8_and_16_bit_and_reals_agree() -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    of_8 = denormalised(prepare(array, GRAY, 16))
    of_16 = denormalised(prepare(array.astype(np.uint16) * 257, GRAY, 16))
    of_reals = denormalised(prepare(array / 255, GRAY, 16))
    np.testing.assert_allclose(of_8[0], of_8[2], atol=1e-6)
    np.testing.assert_allclose(of_8, of_16, atol=1 / 255)  # rounded in both passes
    np.testing.assert_allclose(of_16, of_reals, atol=1e-6)


def test_colour_declared_gray_is_luminance() -> None:
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(array).convert("L"))
    assert np.abs(denormalised(prepare(array, GRAY, 8))[1] * 255 - expected).max() <= 1.001


def test_integer_depth_in_centimetres_about_its_mean() -> None:
    array = np.zeros((4, 4), dtype=np.uint16)
    array[1:] = 13107  # 0.1 m
    array[3] = 26214  # 0.2 m
    expected = np.zeros((4, 4))
    mean = (2 * 0.1 + 0.2) / 3
    expected[1:3], expected[3] = (0.1 - mean) * 100, (0.2 - mean) * 100
    np.testing.assert_allclose(read_depth(array, DEPTH).centred(), expected, atol=1e-5)


def test_depth_resizes_plainly_without_imagenet_statistics() -> None:
    array = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    centred = torch.from_numpy(read_depth(array, METRES).centred())
    expected = interpolate(centred[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
    image = prepare(array, METRES, 8)
    assert image.dtype == torch.float32
    for channel in image:
        torch.testing.assert_close(channel, expected)


def test_last_channel_is_the_foreground() -> None:
    depth, foreground = np.full((4, 4), 3.0), np.zeros((4, 4))
    depth[0], foreground[:2] = 1.0, 1.0
    array = np.stack([depth, np.full((4, 4), np.nan), foreground], axis=2)
    expected = np.zeros((4, 4))
    expected[0], expected[1] = -100, 100
    np.testing.assert_allclose(read_depth(array, METRES).centred(), expected)


def test_depth_that_is_not_finite_or_absent_is_background() -> None:
    array = np.array([[1.0, np.nan], [np.inf, 3.0]], dtype=np.float32)
    np.testing.assert_allclose(read_depth(array, METRES).centred(), [[-100, 0], [0, 100]])
    assert not read_depth(np.zeros((3, 3), dtype=np.uint16), DEPTH).centred().any()


@pytest.mark.parametrize(
    ("array", "modality", "message"),
    [
        (np.full((2, 2), 300.0), GRAY, "300"),
        (np.full((2, 2), np.nan), GRAY, "nan"),
        (np.zeros((2, 2), dtype=np.int32), RGB, "int32"),
        (np.zeros((2, 2, 2), dtype=np.uint8), RGB, "2 channels"),
        (np.arange(12, dtype=np.uint8).reshape(2, 2, 3), DEPTH, "colour-coded"),
    ],
)
def test_values_that_do_not_fit_are_refused(array: np.ndarray, modality: Modality, message: str) -> None:
    for call in (
        lambda: prepare(array, modality, 4, "cap/3.tiff"),
        lambda: check_fits(array, modality, "cap/3.tiff"),
    ):
        with pytest.raises(ValueError, match=rf"cap/3\.tiff: .*{message}"):
            call()
