"""What there is, in tables: classes, values by modality, masks by defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from unimmad.audit.facts import ImageFacts, SampleFacts
from unimmad.audit.files import UPRIGHT, images_by_modality
from unimmad.audit.findings import by_class
from unimmad.audit.mask_checks import by_defect, pixels
from unimmad.report.table import Table

MOST_KINDS = 3
"""Sizes, types, sets of sensors that a cell names."""
NOTHING = "-"


def class_table(samples: Sequence[SampleFacts]) -> Table:
    """How many of each, and of what size."""
    rows = []
    for name, of_class in by_class(samples).items():
        splits = Counter(sample.split for sample in of_class)
        anomalous = sum(sample.anomalous for sample in of_class)
        sizes = _kinds(f"{image.width} x {image.height}" for sample in of_class for image in _first(sample))
        sensors = _kinds(" + ".join(sample.images) for sample in of_class)
        normal = splits["test"] - anomalous
        counts = (splits["train"], splits["calibration"], normal, anomalous)
        rows.append((name, *map(str, counts), sizes, sensors))
    heads = ("class", "train", "calibration", "test normal", "anomalous", "size", "sensors")
    return Table(heads, rows, caption="Samples of each class; sizes as width x height, the most frequent first.")


def value_table(samples: Sequence[SampleFacts]) -> Table:
    """How images are stored and what values they hold."""
    rows = []
    for name, pairs in images_by_modality(samples).items():
        images = [image for _, image in pairs]
        turned = sum(image.orientation != UPRIGHT for image in images)
        cells = (
            str(len(images)),
            _kinds(image.file_type for image in images),
            _kinds(image.mode or f"{image.channels} channels" for image in images),
            _kinds(image.dtype for image in images),
            _kinds(str(image.bits) for image in images if image.bits is not None),
            *_range(images),
            _middle([image.span_m for image in images if image.span_m is not None]),
            str(turned),
        )
        rows.append((name, *cells))
    heads = (
        *("modality", "images", "file", "colours", "type", "bits used"),
        *("smallest", "median", "largest", "depth span, m", "turned"),
    )
    return Table(
        heads, rows, caption="Values as they are stored; bits used: from the lowest to the highest that is set."
    )


def mask_table(samples: Sequence[SampleFacts], image_size: int) -> Table:
    """What masks cover, defect by defect."""
    rows = []
    for name, of_class in by_class(samples).items():
        for defect, of_defect in by_defect(of_class).items():
            masks = [sample.mask for sample in of_defect if sample.mask]
            marked = [mask for mask in masks if mask.regions]
            cells = (
                str(len(of_defect)),
                str(len(masks)),
                f"{np.median([mask.share for mask in masks]):.2%}" if masks else NOTHING,
                f"{min(m.share for m in masks):.2%} to {max(m.share for m in masks):.2%}" if masks else NOTHING,
                str(sum(mask.regions for mask in masks)),
                str(min((mask.smallest for mask in marked), default=0)) if marked else NOTHING,
                pixels(min(mask.smallest_at_size for mask in marked)) if marked else NOTHING,
                str(sum(mask.lost for mask in masks)),
            )
            rows.append((name, defect, *cells))
    heads = (
        *("class", "defect", "samples", "masks", "covered", "least to most", "regions"),
        *("smallest, px", f"at {image_size}, px", "vanish"),
    )
    caption = "Masks of each defect; the smallest region as stored and at the model's size, and how many vanish there."
    return Table(heads, rows, names=2, caption=caption)


def _first(sample: SampleFacts) -> list[ImageFacts]:
    return list(sample.images.values())[:1]


def _kinds(values: Iterable[str]) -> str:
    """The most frequent ones, and how many more there are."""
    counts = Counter(value for value in values if value)
    shown = ", ".join(name for name, _ in counts.most_common(MOST_KINDS))
    more = f" and {len(counts) - MOST_KINDS} more" if len(counts) > MOST_KINDS else ""
    return f"{shown}{more}" or NOTHING


def _range(images: Sequence[ImageFacts]) -> tuple[str, str, str]:
    found = [image.quantiles for image in images if image.quantiles]
    if not found:
        return NOTHING, NOTHING, NOTHING
    middle = np.median([values[len(values) // 2] for values in found])
    return f"{min(v[0] for v in found):.4g}", f"{middle:.4g}", f"{max(v[-1] for v in found):.4g}"


def _middle(values: Sequence[float]) -> str:
    return f"{np.median(values):.3g}" if values else NOTHING
