from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from unimmad.report.figures import (
    SamplePicture,
    class_figure,
    save_figure,
    save_overview,
)


def sample(number=0, modalities=("rgb",), shape=(32, 32), defect="hole", with_mask=True, key=None):
    rng = np.random.default_rng(number)
    mask_HW = np.zeros(shape, bool)
    if defect != "good":
        mask_HW[4:12, 6:15] = True
    return SamplePicture(
        class_name=f"metal/plate_{number}",
        key=key or f"plate/{number:03d}",
        defect=defect,
        score=0.25 * number,
        images=tuple((name, rng.random((*shape, 3))) for name in modalities),
        map_HW=(mask_HW + 0.1 * rng.random(shape)).astype(np.float32),
        mask_HW=mask_HW if with_mask else None,
    )


def opened(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")) / 255


def assert_worth_looking_at(pixels):
    """White paper with much drawn on it."""
    white = (pixels > 0.98).all(axis=2)
    assert 0.05 < white.mean() < 0.75
    assert (pixels[0] > 0.98).all()
    assert pixels.std() > 0.1


@pytest.mark.parametrize("modalities", [("rgb",), ("flair", "t1", "t2", "t1ce")])
def test_class_figure_grows_with_modalities_and_rows(tmp_path, modalities):
    rows = [
        sample(1, modalities),
        sample(2, modalities, defect="good"),
        sample(3, modalities, with_mask=False),
    ]
    save_figure(class_figure(rows[:1]), tmp_path / "one.png")
    save_figure(class_figure(rows), tmp_path / "sub" / "three.png")
    one, three = opened(tmp_path / "one.png"), opened(tmp_path / "sub" / "three.png")
    assert_worth_looking_at(three)
    assert one.shape[1] == three.shape[1]
    assert 200 * (len(modalities) + 3) < three.shape[1] < 300 * (len(modalities) + 3)
    assert 2 * one.shape[0] < three.shape[0] < 3 * one.shape[0]


def test_class_figure_takes_missing_modalities_and_other_sizes(tmp_path):
    rows = [sample(1, ("depth",), shape=(20, 50)), sample(2, ("rgb", "depth"), shape=(50, 20))]
    save_figure(class_figure(rows), tmp_path / "ragged.png")
    save_figure(class_figure(rows[1:]), tmp_path / "second.png")
    ragged, second = opened(tmp_path / "ragged.png"), opened(tmp_path / "second.png")
    assert ragged.shape[1] == second.shape[1]
    assert ragged.shape[0] > second.shape[0]


def test_a_modalitys_part_of_the_map_has_a_column_of_its_own_and_a_doubt_of_its_place_is_said(tmp_path):
    plain = sample(1, ("rgb", "depth"))
    with_parts = dataclasses.replace(
        plain, parts=(0.25 * plain.map_HW, 0.75 * plain.map_HW), shares=(0.25, 0.75), misaligned=("depth",)
    )
    assert with_parts.title.endswith(", rgb 25%, depth 75%, depth perhaps misaligned")
    figure = class_figure([with_parts, sample(2, ("rgb",))])
    heads = [ax.get_title() for part in figure.subfigs for row in part.subfigs for ax in row.axes if ax.get_title()]
    assert heads == ["rgb", "depth", "map", "map on image", "mask", "by rgb, x 2", "by depth, x 2"]
    save_figure(figure, tmp_path / "parts.png")
    assert opened(tmp_path / "parts.png").shape[1] > 200 * 7


def test_a_part_is_times_the_number_of_its_own_samples_modalities():
    names = ("rgb", "depth", "infrared")
    two, three = (
        dataclasses.replace(row, parts=(row.map_HW / len(row.images),) * len(row.images))
        for row in (sample(1, names[:2]), sample(2, names))
    )
    figure = class_figure([two, three])
    rows = [row for part in figure.subfigs for row in part.subfigs if len(row.axes) == 9]
    assert rows[0].axes[6].get_title() == "by rgb, x 2 or 3"
    for row, drawn in zip((two, three), rows, strict=True):
        np.testing.assert_allclose(drawn.axes[6].images[0].get_array(), row.map_HW, rtol=1e-6)


def on_scale(row: SamplePicture, low: float, high: float) -> SamplePicture:
    """The same with its map's values brought to this range, half of them to its lower end."""
    upper_HW = np.maximum(row.map_HW - np.median(row.map_HW), 0).astype(np.float64)
    return dataclasses.replace(row, map_HW=low + (high - low) * upper_HW / upper_HW.max())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "scale", [(100.0, 100.15), (12345.1, 12345.9), (-1e-6, -9.997e-7), (1e6, 1e6 + 4), (0.0, 1e-9)]
)
def test_a_scale_of_any_numbers_leaves_room_for_its_bar(tmp_path, scale):
    """Where numbers took all of it, matplotlib warned and laid out nothing."""
    save_figure(class_figure([on_scale(sample(1, shape=(16, 64)), *scale)]), tmp_path / "panel.png")
    assert_worth_looking_at(opened(tmp_path / "panel.png"))


def test_what_the_scales_numbers_have_in_common_is_in_its_label():
    figure = class_figure([on_scale(sample(1), 12345.1, 12345.9)])
    (bar,) = figure.subfigs[1].axes
    assert "1.2345" in bar.get_ylabel()
    assert not bar.yaxis.offsetText.get_visible()


def test_a_long_key_with_dollars_does_not_widen_the_figure(tmp_path):
    save_figure(class_figure([sample(1)]), tmp_path / "short.png")
    save_figure(class_figure([sample(1, key="a$b_$c/" * 60)]), tmp_path / "long.png")
    assert opened(tmp_path / "short.png").shape == opened(tmp_path / "long.png").shape


def test_the_maps_of_a_class_are_on_one_scale(tmp_path):
    """Beside a map of large values the same one is dark."""
    row, large = sample(1, ("rgb", "depth")), on_scale(sample(1, ("rgb", "depth")), 0.0, 100.0)
    pictures = []
    for number, rows in enumerate([[row], [row, large]]):
        save_figure(class_figure(rows), tmp_path / f"{number}.png")
        pictures.append(opened(tmp_path / f"{number}.png"))
    assert_worth_looking_at(pictures[0])
    map_, upper_row = slice(408, 612), slice(40, 300)  # pixels: the third of its cells
    assert pictures[0][upper_row, map_].mean() > pictures[1][upper_row, map_].mean() + 0.01


def test_infinite_and_constant_maps_can_be_drawn(tmp_path):
    row = sample(1)
    infinite = np.where(row.map_HW > 0.5, np.inf, 0.0).astype(np.float32)
    save_figure(class_figure([dataclasses.replace(row, map_HW=infinite, mask_HW=None)]), tmp_path / "infinite.png")
    assert_worth_looking_at(opened(tmp_path / "infinite.png"))


def test_overview_has_a_place_for_every_class(tmp_path):
    save_overview([sample(1)], tmp_path / "one.png")
    save_overview([sample(number) for number in range(7)], tmp_path / "seven.png")
    one, seven = opened(tmp_path / "one.png"), opened(tmp_path / "seven.png")
    assert_worth_looking_at(seven)
    assert seven.shape[1] == 2 * one.shape[1]
    assert seven.shape[0] == pytest.approx(4 * one.shape[0], abs=4)
    last_row = seven[-one.shape[0] :]
    assert (last_row[:, one.shape[1] :] > 0.98).all()
    assert (last_row[:, : one.shape[1]] < 0.5).any()


def test_an_unusable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*/file/plate\.png.*choose another output folder"):
        save_figure(class_figure([sample(1)]), tmp_path / "file" / "plate.png")


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        class_figure([])
    with pytest.raises(ValueError, match="no samples"):
        save_overview([], tmp_path / "empty.png")
    assert list(tmp_path.iterdir()) == []
