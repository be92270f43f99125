"""Pictures of what an audit found: suspicious images, pairs, modalities over each other, small defects, values.

Letters: C = 3 channels, H x W the size that pictures are drawn at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as PillowImage
from scipy import ndimage

from unimmad.audit.duplicates import DuplicatePair
from unimmad.audit.facts import SampleFacts
from unimmad.audit.files import images_by_modality
from unimmad.audit.geometry import Misaligned
from unimmad.audit.mask_checks import pixels
from unimmad.audit.samples import AuditSample
from unimmad.audit.suspects import Suspect
from unimmad.data.decode import decode_image
from unimmad.data.prepare import prepare
from unimmad.data.writing.mask_checks import read_mask
from unimmad.report.drawing import FONT_SIZE, Image, denormalise, draw_contour, laid_over, show_blank, show_image
from unimmad.report.figures import fitted, new_figure

SIDE = 192
"""Pixels of a picture's side."""
COLUMNS = 8
SHOWN = 8
"""Of each kind."""
TYPICAL = 2
"""Ordinary images beside a class's suspicious ones."""
_CELL_INCHES = 1.45
_TITLE_INCHES = 0.36
_SMALL_FONT = 6
_TEXT_INCHES = _CELL_INCHES * FONT_SIZE / _SMALL_FONT
"""Of a line in the usual font that is as long as a tile is wide in the small one."""
_BINS = 64
_LEAST_UNLIKE = 1.5
"""Times the class's median distance, where the colours of a picture's patches end at least."""
_LEAST_CROP = 64
"""Pixels round a small defect."""


@dataclass(frozen=True)
class Tile:
    """One picture and two short lines above it."""

    image_HWC: Image | None
    """0 to 1, drawn at the aspect of ``size``; None where it can't be read."""
    size: tuple[int, int]
    """Height and width of the original."""
    title: str = ""
    subtitle: str = ""
    mask_HW: NDArray[np.bool_] | None = None
    """Its contour is drawn."""


Lookup = Mapping[tuple[str, str], AuditSample]
"""Samples by ``DATASET/CLASS`` and key."""


def lookup(samples: Sequence[AuditSample]) -> Lookup:
    """To find what was measured again, so as to draw it."""
    return {(sample.class_name, sample.sample.key): sample for sample in samples}


def suspects_figure(suspects: Sequence[Suspect], found: Lookup) -> Figure:
    """The most suspicious images of a class and some ordinary ones, and below each what is unlike the others."""
    first = max(SHOWN - TYPICAL, len(suspects) // 2)
    ordinary = suspects[first : first + TYPICAL]
    shown = [*suspects[: SHOWN - TYPICAL], *ordinary]
    upper, lower = [], []
    for suspect in shown:
        image_HWC, size = _picture(suspect.sample, suspect.modality, found)
        what = "ordinary" if any(suspect is one for one in ordinary) else f"{suspect.deviations:.1f} deviations"
        upper.append(Tile(image_HWC, size, suspect.sample.key, f"{suspect.modality}: {what}"))
        map_HW = _enlarged(suspect.distances_hw)
        limits = (1.0, max(_LEAST_UNLIKE, float(map_HW.max())))
        over_HWC = None if image_HWC is None else laid_over(image_HWC, map_HW, limits)
        lower.append(Tile(over_HWC, size))
    return tiles_figure([upper, lower])


def duplicates_figure(pairs: Sequence[DuplicatePair], found: Lookup) -> Figure:
    """Pairs side by side, two of them in a row of four."""
    tiles = []
    for pair in pairs[:SHOWN]:
        for sample in (pair.first, pair.second):
            image_HWC, size = _picture(sample, pair.modality, found)
            alike = "same pixels" if pair.exact else f"r {pair.correlation:.3f}"
            tiles.append(Tile(image_HWC, size, sample.key, f"{sample.split} {sample.defect}, {alike}"))
    return tiles_figure(_rows(tiles))


def misaligned_figure(misaligned: Sequence[Misaligned], found: Lookup) -> Figure:
    """The first modality in red, the second in green and blue: where they agree it is grey."""
    tiles = []
    for one in misaligned[:SHOWN]:
        pair = one.pair
        (first, size), (second, _) = (_picture(one.sample, name, found) for name in (pair.first, pair.second))
        both = None
        if first is not None and second is not None:
            red, other = _stretched(first.mean(axis=2)), _stretched(second.mean(axis=2))
            both = np.stack([red, other, other], axis=2)
        shift = f", best at {pair.down:+.0%} {pair.right:+.0%}" if one.shifted else ""
        tiles.append(Tile(both, size, one.sample.key, f"{pair.first}, {pair.second}: {pair.in_place:.2f}{shift}"))
    return tiles_figure(_rows(tiles))


def small_defects_figure(samples: Sequence[SampleFacts], found: Lookup) -> Figure | None:
    """The smallest regions of all masks, cut out at full resolution; None without any."""
    masked = [sample for sample in samples if sample.mask and sample.mask.regions and sample.images]
    masked.sort(key=lambda sample: sample.mask.smallest_at_size if sample.mask else 0)
    tiles = [_cut_out(sample, found) for sample in masked[:SHOWN]]
    return tiles_figure(_rows(tiles)) if tiles else None


def values_figure(samples: Sequence[SampleFacts]) -> Figure:
    """A panel a modality: which values training, normal and anomalous test images hold."""
    panels = images_by_modality(samples)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.8 * columns, 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, images) in zip(axes, panels.items(), strict=False):
        groups: dict[str, list[tuple[float, ...]]] = {"train": [], "test, normal": [], "test, anomalous": []}
        for sample, image in images:
            if image.quantiles and sample.split != "calibration":
                label = "anomalous" if sample.anomalous else "normal"
                groups["train" if sample.split == "train" else f"test, {label}"].append(image.quantiles)
        values = {label: _midpoints(of_label) for label, of_label in groups.items() if of_label}
        if not values:
            continue
        low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        for label, of_label in values.items():
            counts, _ = np.histogram(of_label, edges)
            ax.stairs(counts / len(of_label), edges, label=label)
        ax.set_title(fitted(name, 3.4), fontsize=FONT_SIZE)
        ax.tick_params(labelsize=FONT_SIZE - 1)
        ax.set_yticks([])
        ax.legend(fontsize=FONT_SIZE - 2, frameon=False)
    return figure


def tiles_figure(rows: Sequence[Sequence[Tile]]) -> Figure:
    """Tiles side by side."""
    columns = max(len(row) for row in rows)
    figure = new_figure(columns * _CELL_INCHES, len(rows) * (_CELL_INCHES + _TITLE_INCHES))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for of_row, row in zip(axes, rows, strict=True):
        for ax in of_row[len(row) :]:
            ax.set_axis_off()
        for ax, tile in zip(of_row, row, strict=False):
            lines = (fitted(line, _TEXT_INCHES) for line in (tile.title, tile.subtitle) if line)
            ax.set_title("\n".join(lines), fontsize=_SMALL_FONT, loc="left")
            if tile.image_HWC is None:
                show_blank(ax, (SIDE, SIDE), "can't be read")
                continue
            height, width = tile.image_HWC.shape[:2]
            show_image(ax, np.clip(tile.image_HWC, 0, 1), aspect=tile.size[0] / tile.size[1] * width / height)
            draw_contour(ax, tile.mask_HW)
    return figure


def remove_pictures(folder: Path) -> None:
    """Those of an earlier audit, in the folder of pictures."""
    for path in folder.glob("*.png"):
        path.unlink()


def _rows(tiles: Sequence[Tile]) -> list[Sequence[Tile]]:
    return [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]


def _picture(facts: SampleFacts, modality: str, found: Lookup) -> tuple[Image | None, tuple[int, int]]:
    """As the model sees it but larger, and its own height and width."""
    audited = found[facts.class_name, facts.key]
    [entry] = [one for one in audited.entry.modalities if one.name == modality]
    file = audited.sample.images[modality]
    try:
        array = decode_image(file.read(), file.suffix, file.name)
        return denormalise(prepare(array, entry, SIDE, file.name), entry.kind), array.shape[:2]
    except (ValueError, OSError):  # it was there when it was measured
        return None, (SIDE, SIDE)


def _cut_out(facts: SampleFacts, found: Lookup) -> Tile:
    """The neighbourhood of a sample's smallest region, in its first modality."""
    audited = found[facts.class_name, facts.key]
    name, mask_file = next(iter(facts.images)), audited.sample.mask
    assert mask_file is not None
    assert facts.mask is not None
    subtitle = f"{facts.mask.smallest} px, in the model {pixels(facts.mask.smallest_at_size)}"
    try:
        marked_HW = read_mask(mask_file.read(), mask_file.suffix, mask_file.name, True, mask_file.lossy).marked_HW
        labels_HW, _ = ndimage.label(marked_HW, np.ones((3, 3)))
        number = int(np.bincount(labels_HW.ravel())[1:].argmin()) + 1
        window = _window(ndimage.find_objects(labels_HW)[number - 1], marked_HW.shape)
        [entry] = [one for one in audited.entry.modalities if one.name == name]
        file = audited.sample.images[name]
        array = decode_image(file.read(), file.suffix, file.name)[window]
        image_HWC = denormalise(prepare(array, entry, SIDE, file.name), entry.kind)
    except (ValueError, OSError):
        return Tile(None, (SIDE, SIDE), facts.key, subtitle)
    mask = PillowImage.fromarray(marked_HW[window]).resize((SIDE, SIDE), PillowImage.Resampling.NEAREST)
    return Tile(image_HWC, array.shape[:2], facts.key, subtitle, np.asarray(mask))


def _window(region: Sequence[slice], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The region with as much again round it, within the picture."""
    rows, columns = region
    half = max(_LEAST_CROP // 2, rows.stop - rows.start, columns.stop - columns.start)
    middle = [(part.start + part.stop) // 2 for part in region]
    low = [max(0, min(centre - half, length - 2 * half)) for centre, length in zip(middle, shape, strict=True)]
    return slice(low[0], low[0] + 2 * half), slice(low[1], low[1] + 2 * half)


def _midpoints(quantiles: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
    """Values that stand for equal shares of the pixels of all images."""
    values = np.array(quantiles)
    return ((values[:, 1:] + values[:, :-1]) / 2).ravel()


def _enlarged(map_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    picture = PillowImage.fromarray(map_hw.astype(np.float32))
    return np.asarray(picture.resize((SIDE, SIDE), PillowImage.Resampling.BILINEAR))


def _stretched(image_HW: Image) -> Image:
    low, high = np.quantile(image_HW, (0.01, 0.99))
    return np.clip((image_HW - low) / max(float(high - low), 1e-6), 0.0, 1.0)
