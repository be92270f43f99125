"""Draw the pictures of docs/data.md: how a file is read, from one synthetic sample that is stored in many ways.

python tools/data_pictures.py [FOLDER]      docs/ by default
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from unimmad.data.decode import decode_image
from unimmad.data.index import Modality
from unimmad.data.layouts.source_set import SourceSample
from unimmad.data.mask_resize import MaskRule, resized_mask
from unimmad.data.prepare import stored_pixels
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.value_range import found_range
from unimmad.data.views import whole
from unimmad.data.writing.mask_checks import read_mask

PIXELS_OF_AN_INCH = 110
Draw = Callable[[Axes], object]


def main(folder: Path) -> None:
    """Write ``values.png`` and ``masks.png``."""
    matplotlib.use("Agg")
    sample = next(
        sample
        for found in synthetic_sets(train_per_class=0, normal_per_class=0, anomalous_per_class=1)
        for sample in found.samples
        if {"rgb", "depth"} <= set(sample.images)
    )
    _save(folder / "values.png", _values(sample))
    _save(folder / "masks.png", _masks(sample))


def _values(sample: SourceSample) -> list[tuple[str, Draw]]:
    rgb_HW3, depth_HW = (decode_image(sample.images[name].read(), ".png", name) for name in ("rgb", "depth"))
    twelve_HW = (rgb_HW3.mean(axis=2) * 4095 / 255).astype(np.uint16)
    gray = Modality(name="camera", slot=0, kind="gray")
    found = found_range(np.dtype(np.uint16), float(twelve_HW.max()))
    assert found is not None, "12 bits are less than 1/8 of 16"
    on_its_side = _encoded(Image.fromarray(rgb_HW3).transpose(Image.Transpose.ROTATE_90), exif=6)
    stored_HW3 = np.asarray(Image.open(io.BytesIO(on_its_side)))
    measured_HW = depth_HW > 0
    beyond_HW = depth_HW.astype(float) - depth_HW[measured_HW].min()
    millimetres_HW = np.where(measured_HW, 300 + 40 * beyond_HW / beyond_HW.max(), 0).astype(np.uint16)
    depth_mm = Modality(name="depth", slot=0, kind="depth", unit=0.001, invalid=0)
    return [
        ("12 bits in 16, by the type", _gray(stored_pixels(twelve_HW, gray))),
        (
            f"the same, by 0-{found.high:g}",
            _gray(stored_pixels(twelve_HW, gray.model_copy(update={"ranges": (found,)}))),
        ),
        ("orientation 6, as stored", lambda axes: axes.imshow(stored_HW3)),
        ("the same, as read", lambda axes: axes.imshow(decode_image(on_its_side, ".png", "photograph"))),
        ("depth:mm, in centimetres", _with_bar(stored_pixels(millimetres_HW, depth_mm))),
    ]


def _masks(sample: SourceSample) -> list[tuple[str, Draw]]:
    assert sample.mask is not None
    marked_HW = decode_image(sample.mask.read(), ".png", "mask") > 0
    faint_HW = np.where(marked_HW, 255, 8).astype(np.uint8)
    palette = Image.fromarray(marked_HW.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 256)
    alpha = Image.merge("LA", (Image.new("L", palette.size), Image.fromarray(marked_HW.astype(np.uint8) * 255)))
    stored = {
        "values": _encoded(Image.fromarray(marked_HW.astype(np.uint8) * 255)),
        "alpha": _encoded(alpha),
        "palette, all black": _encoded(palette),
        "background of 8": _encoded(Image.fromarray(faint_HW)),
    }
    panels: list[tuple[str, Draw]] = []
    for name, data in stored.items():
        read = read_mask(data, ".png", name, anomalous=True)
        panels.append((f"{name}: {'refused' if read.odd else 'read'}", _gray(read.marked_HW.astype(float))))
    small_HW = np.zeros((400, 400), dtype=bool)
    small_HW[101:109, 101:109], small_HW[250:258, 305:313] = True, True
    rules: tuple[MaskRule, ...] = ("nearest", "area")
    for rule in rules:
        mask_hw = resized_mask(small_HW, whole(small_HW.shape, 16), rule)
        panels.append((f"two of 8 in 400, {rule}", _gray(mask_hw.astype(float))))
    return panels


def _encoded(image: Image.Image, exif: int = 1) -> bytes:
    stream, tags = io.BytesIO(), Image.Exif()
    tags[274] = exif
    image.save(stream, format="PNG", exif=tags)
    return stream.getvalue()


def _gray(pixels_HW: NDArray) -> Draw:
    high = 255 if pixels_HW.dtype == np.uint8 else 1
    return lambda axes: axes.imshow(pixels_HW, cmap="gray", vmin=0, vmax=high, interpolation="nearest")


def _with_bar(pixels_HW: NDArray) -> Draw:
    def draw(axes: Axes) -> None:
        assert isinstance(axes.figure, Figure)
        axes.figure.colorbar(axes.imshow(pixels_HW, cmap="viridis"), ax=axes, shrink=0.7)

    return draw


def _save(path: Path, panels: Sequence[tuple[str, Draw]]) -> None:
    figure = Figure(figsize=(1.55 * len(panels), 1.65), layout="constrained")
    for place, (title, draw) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set_title(title, fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        draw(axes)
    figure.savefig(path, dpi=PIXELS_OF_AN_INCH, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs")
