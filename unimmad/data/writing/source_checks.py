"""What must be true of datasets before any shard of them is written."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from unimmad.data.decode import IMAGE_SUFFIXES
from unimmad.data.index import NAME
from unimmad.data.layouts.source_set import SourceSample, SourceSet
from unimmad.serialization.text import short


def check_sets(sets: Sequence[SourceSet], allow_missing: bool) -> None:
    """Check names, keys, modalities and classes; reads no image.

    Raises:
        ValueError: no set or two of one name, a name or key that cannot be used, a modality unknown or
            (unless ``allow_missing``) missing, an image type that is not read, or a class without normal
            training samples.
    """
    if not sets:
        raise ValueError("no dataset given")
    for name, count in Counter(found.name for found in sets).items():
        _check_name(name, "dataset")
        if count > 1:
            raise ValueError(f"{count} datasets are called {name}; give them different names with --name")
    for found in sets:
        _check_slots(found)
        _check_keys(found)
        for sample in found.samples:
            _check_sample(found, sample, allow_missing)
        _check_classes(found)


MAX_NAME_BYTES = 255
"""Of a dataset, class, defect or modality; what file systems take for a name."""
MAX_KEY_BYTES = 2048
"""A key is made of several names, and has to fit into a tar's extended header."""


def _check_name(name: str, what: str) -> None:
    _check_text(name, what, MAX_NAME_BYTES)
    if not re.fullmatch(NAME, name):
        raise ValueError(f"{name!r} cannot name a {what}: it is empty, or starts with a dot, or contains a slash")


def _check_text(text: str, what: str, most_bytes: int) -> None:
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise ValueError(f"{text!a} cannot name a {what}: it contains a control character, or is not UTF-8")
    if len(text.encode()) > most_bytes:
        raise ValueError(f"{short(text)} cannot name a {what}: it is longer than {most_bytes} bytes")


def _check_slots(found: SourceSet) -> None:
    modalities = found.entry.modalities
    if not modalities:
        raise ValueError(f"dataset {found.name} has no modality")
    for modality in modalities:
        _check_name(modality.name, "modality")
    for what, values in (("name", [m.name for m in modalities]), ("slot", [m.slot for m in modalities])):
        if len(set(values)) < len(values):
            raise ValueError(f"dataset {found.name}: two modalities share a {what}: {values}")


def _check_keys(found: SourceSet) -> None:
    for key, count in Counter(sample.key for sample in found.samples).items():
        if count > 1:
            raise ValueError(f"dataset {found.name}: {count} samples have the key {key}; keys must differ")
        if not key or "." in key or "/" in key:
            raise ValueError(
                f"dataset {found.name}: {key!r} cannot be a key: WebDataset cuts keys at a dot, paths end at a slash"
            )
        _check_text(key, "sample", MAX_KEY_BYTES)


def _check_sample(found: SourceSet, sample: SourceSample, allow_missing: bool) -> None:
    where = f"{found.name}/{sample.class_name}, sample {sample.key}"
    _check_text(sample.defect, "defect", MAX_NAME_BYTES)
    names = [modality.name for modality in found.entry.modalities]
    if unknown := set(sample.images) - set(names):
        raise ValueError(f"{where}: modality {min(unknown)} is none of the dataset's ({', '.join(names)})")
    if not sample.images:
        raise ValueError(f"{where}: it has no image at all")
    missing = [name for name in names if name not in sample.images]
    if missing and not allow_missing:
        present = next(iter(sample.images.values())).name
        raise ValueError(
            f"{where}: {' and '.join(missing)} missing beside {present}; "
            "add the image, remove the sample, or write it without by --allow-missing"
        )
    for file in (*sample.images.values(), *([sample.mask] if sample.mask else [])):
        if file.suffix not in IMAGE_SUFFIXES:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{file.name}: type {file.suffix or '(none)'} is not read; use one of {known}")


def _check_classes(found: SourceSet) -> None:
    classes = {sample.class_name for sample in found.samples}
    if not classes:
        raise ValueError(f"dataset {found.name} has no sample")
    trained = Counter(s.class_name for s in found.samples if s.split == "train" and not s.anomalous)
    for name in sorted(classes):
        _check_name(name, "class")
        if not trained[name]:
            raise ValueError(f"{found.name}/{name} has no normal training image (train/good is missing or empty)")
    for sample in found.samples:
        if sample.split != "test" and sample.anomalous:
            split = "training" if sample.split == "train" else sample.split
            raise ValueError(f"{found.name}/{sample.class_name}: anomalous sample {sample.key} in the {split} split")
