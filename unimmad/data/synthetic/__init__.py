"""A multi-modal dataset drawn by code, for demonstrations and tests: no download, and the same seed gives
the same bytes (under the same versions of numpy, scipy and Pillow).

Four sets in three fields with ten classes and one to four modalities, 128 x 128 pixels; ``catalogue`` lists classes
and defects.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from unimmad.data.index import Split
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.synthetic.catalogue import SETS, ClassSpec, SetSpec, draw_sample
from unimmad.data.synthetic.scene import encode_png

__all__ = ["synthetic_sets"]

MASK = "mask"
_CLASSES = {class_spec.name: class_spec for spec in SETS for class_spec in spec.classes}


def synthetic_sets(
    seed: int = 0, *, train_per_class: int = 28, normal_per_class: int = 12, anomalous_per_class: int = 14
) -> list[SourceSet]:
    """The synthetic datasets; images are drawn when they are read.

    Args:
        seed: 0 or more; another seed draws other images of the same classes.
        train_per_class: normal training samples of each class.
        normal_per_class: normal test samples of each class.
        anomalous_per_class: defective test samples of each class; its kinds of defect take turns.

    Raises:
        ValueError: a negative seed or count.
    """
    asked = {
        "seed": seed,
        "train_per_class": train_per_class,
        "normal_per_class": normal_per_class,
        "anomalous_per_class": anomalous_per_class,
    }
    for name, value in asked.items():
        if value < 0:
            raise ValueError(f"synthetic data: {name} is {value}; give 0 or more")
    return [_source_set(seed, spec, train_per_class, normal_per_class, anomalous_per_class) for spec in SETS]


def _source_set(seed: int, spec: SetSpec, train: int, normal: int, anomalous: int) -> SourceSet:
    samples: list[SourceSample] = []
    for class_spec in spec.classes:
        make = partial(_source_sample, seed, spec, class_spec)
        samples += [make("train", number, None) for number in range(train)]
        samples += [make("test", number, None) for number in range(normal)]
        kinds = len(class_spec.defects)
        samples += [make("test", normal + number, number % kinds) for number in range(anomalous)]
    description = f"synthetic, seed {seed}: {spec.description}"
    return SourceSet(spec.name, description, spec.entry, tuple(samples))


def _source_sample(
    seed: int, spec: SetSpec, class_spec: ClassSpec, split: Split, number: int, kind: int | None
) -> SourceSample:
    defect = "good" if kind is None else class_spec.defects[kind].name
    key = f"{class_spec.name}_{split}_{defect}_{number:03d}"

    def file(name: str) -> SourceFile:
        title = f"synthetic {key} {name}"
        return SourceFile(title, ".png", partial(_png, seed, class_spec.name, split, number, kind, name))

    return SourceSample(
        key=key,
        class_name=class_spec.name,
        split=split,
        defect=defect,
        images={modality.name: file(modality.name) for modality in spec.entry.modalities},
        mask=None if kind is None else file(MASK),
    )


def _png(seed: int, class_name: str, split: Split, number: int, kind: int | None, name: str) -> bytes:
    return _pngs(seed, class_name, split, number, kind)[name]


@lru_cache(maxsize=16)
def _pngs(seed: int, class_name: str, split: Split, number: int, kind: int | None) -> dict[str, bytes]:
    """All files of one sample; kept for a while, since they are read one after the other."""
    spec = _CLASSES[class_name]  # by its name: what draws a class can't be pickled
    drawing = draw_sample(seed, spec, split, number, None if kind is None else spec.defects[kind])
    files = {name: encode_png(image) for name, image in drawing.images.items()}
    return files | {MASK: encode_png(drawing.mask_HW.astype(np.uint8) * 255)}
