"""From a stored image to a view of it, and back: nothing is lost, and nothing moves."""

import numpy as np
import pytest
import torch

from unimmad.data.index import Modality
from unimmad.data.mask_resize import MaskLoss, mask_loss, resized_mask
from unimmad.data.prepare import prepare
from unimmad.data.views import Geometry, Tiles, largest_in_area, put_back, whole

RGB = Modality(name="rgb", slot=0, kind="rgb")
DEPTH = Modality(name="z", slot=0, kind="depth")
ASPECTS = ("stretch", "letterbox", "crop")


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("shape", [(20, 300), (300, 20), (64, 96), (32, 32), (7, 5)])
def test_a_spot_comes_back_to_where_it_was(shape, aspect) -> None:
    height, width = shape
    view = whole(shape, 32, aspect)
    top, left = height // 2, width // 2 - (width > height)
    reach = max(1, round(view.shrinking))
    image = np.zeros((*shape, 3), np.uint8)
    image[top : top + reach, left : left + reach] = 255
    seen_HW = prepare(image, RGB, view)[1].numpy()
    assert seen_HW.shape == (32, 32)
    seen_HW[~resized_mask(np.ones(shape, bool), view, "area")] = seen_HW.min()  # padding is grey
    back_HW = put_back(seen_HW, view, shape)
    assert back_HW.shape == shape
    row, column = np.argwhere(back_HW > (back_HW.min() + back_HW.max()) / 2).mean(axis=0) + 0.5
    down, across = view.source.height / view.target.height, view.source.width / view.target.width
    assert abs(row - top - reach / 2) <= down + 1
    assert abs(column - left - reach / 2) <= across + 1


def test_a_letterbox_keeps_the_aspect_and_pads_with_the_mean_and_a_crop_sees_the_middle() -> None:
    image = np.full((20, 40, 3), 255, np.uint8)
    boxed = prepare(image, RGB, whole(image.shape, 32, "letterbox"))
    assert boxed[:, :8].abs().max() < 0.02  # the mean, to the rounding of 8 bits
    assert boxed[:, 24:].abs().max() < 0.02
    assert boxed[:, 8:24].min() > 1
    depth = prepare(np.linspace(1, 2, 800, dtype=np.float32).reshape(20, 40), DEPTH, whole((20, 40), 32, "letterbox"))
    assert not depth[:, :8].any()
    image[:, :10] = image[:, 30:] = 0
    assert (prepare(image, RGB, whole(image.shape, 20, "crop")) > 1).all()
    real = (image / 255).astype(np.float32)  # of real numbers, channel by channel
    torch.testing.assert_close(
        prepare(real, RGB, whole(image.shape, 32, "letterbox")),
        prepare(image, RGB, whole(image.shape, 32, "letterbox")),
        atol=0.03,
        rtol=0,
    )


def test_a_pixel_has_the_largest_value_of_its_area() -> None:
    random = np.random.default_rng(0)
    for shape, size in [((17, 40), (5, 7)), ((6, 6), (4, 9)), ((3, 3), (3, 3)), ((2, 5), (7, 7))]:
        values = random.random(shape).astype(np.float32)
        found = largest_in_area(values, size)
        assert found.shape == size
        for row, column in np.ndindex(size):
            top, left = row * shape[0] // size[0], column * shape[1] // size[1]
            bottom, right = -(-(row + 1) * shape[0] // size[0]), -(-(column + 1) * shape[1] // size[1])
            assert found[row, column] == values[top:bottom, left:right].max()


def test_area_loses_no_region_and_what_the_others_lose_is_counted() -> None:
    marked = np.zeros((200, 3000), bool)
    marked[0, 0] = marked[101:109, 1501:1509] = marked[199, 2999] = True
    view = whole(marked.shape, 64)
    found = {rule: resized_mask(marked, view, rule) for rule in ("area", "nearest", "bilinear")}
    assert mask_loss(marked, found["area"], view) == MaskLoss(3, 0)
    assert mask_loss(marked, found["nearest"], view) == MaskLoss(3, 3)
    assert mask_loss(marked, found["nearest"], view).empties
    assert found["area"][[0, 32, 33, 63], [0, 32, 32, 63]].all()
    crop = whole(marked.shape, 64, "crop")  # the middle 200 columns
    assert mask_loss(marked, resized_mask(marked, crop, "area"), crop) == MaskLoss(3, 2)
    boxed = whole(marked.shape, 64, "letterbox")
    padding = np.ones((64, 64), bool)
    padding[boxed.target.pixels] = False
    assert not resized_mask(marked, boxed, "area")[padding].any()


@pytest.mark.parametrize("shape", [(40, 100), (33, 32), (20, 90), (32, 31), (200, 32)])
def test_tiles_cover_an_image_with_the_overlap_asked_for(shape) -> None:
    views = Geometry("letterbox", Tiles(32, 8)).views(shape, 16)
    seen = np.zeros(shape, int)
    for view in views:
        seen[view.source.pixels] += 1
        assert view.source.top + view.source.height <= shape[0]
        assert view.source.left + view.source.width <= shape[1]
        assert view.size == (16, 16)
    assert seen.all()
    assert len(set(views)) == len(views)
    for axis, (first, length) in enumerate([("top", "height"), ("left", "width")]):
        places = sorted({(getattr(v.source, first), getattr(v.source, length)) for v in views})
        ends = [place + side for place, side in places]
        assert all(end - begin >= 8 for end, (begin, _) in zip(ends, places[1:], strict=False))
        assert ends[-1] == shape[axis]
    beside = Geometry("letterbox", Tiles(32, 8, whole=True)).views(shape, 16)
    assert beside[0] == whole(shape, 16, "letterbox")
    assert beside[1:] == (views if max(shape) > 32 else ())
