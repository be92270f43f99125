"""What every on-disk layout needs: listing folders, naming samples, collecting notices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from unimmad.data.decode import IMAGE_SUFFIXES
from unimmad.data.index import Split
from unimmad.data.modality import ModalityChoice
from unimmad.data.source import SourceFile, SourceSample

GOOD = "good"
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass
class Notices:
    """What a user should know about a data set, each thing said once."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)


class Layout(Protocol):
    """One way in which data sets lie on disk."""

    name: str
    """What ``--layout`` calls it."""
    description: str

    def recognises(self, class_folder: Path) -> bool:
        """Whether a folder that has ``train`` in it is a class in this layout."""

    def read_class(
        self, class_folder: Path, choices: dict[str, ModalityChoice], notices: Notices
    ) -> list[SourceSample]:
        """All samples of one class; keys unique within it.

        Args:
            class_folder: ``ROOT/CLASS``.
            choices: what the user said of modalities, by name; those of kind ``skip`` are left out.
            notices: takes what the user should know.

        Raises:
            ValueError: files that contradict the layout.
        """


def visible_folders(folder: Path) -> list[Path]:
    """Sub-folders by name, without hidden ones and archivers' own; none if there is no ``folder``."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def defect_folders(class_folder: Path, notices: Notices) -> Iterable[tuple[Split, Path]]:
    """``train/good`` and each ``test/DEFECT``; anything else in ``train`` is left out, and said so."""
    for split in SPLITS:
        for folder in visible_folders(class_folder / split):
            if split == "train" and folder.name != GOOD:
                notices.add(f"{folder}: left out, training takes normal samples (train/{GOOD}) only")
                continue
            yield split, folder
    for folder in visible_folders(class_folder):
        if folder.name not in (*SPLITS, "ground_truth"):
            notices.add(f"{folder}: left out, only train and test are read")


def images_by_stem(folder: Path, notices: Notices) -> dict[str, Path]:
    """The images right in ``folder`` by name without suffix, sorted; other files are left out, and said so.

    Raises:
        ValueError: two images differ in their suffix only.
    """
    images: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            others.append(path)
        elif path.stem in images:
            raise ValueError(f"{path} and {images[path.stem].name} name one sample twice; remove one of them")
        else:
            images[path.stem] = path
    for suffix, count in Counter(path.suffix for path in others).items():
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        notices.add(f"{folder}: {count} files of type {suffix or '(none)'} left out; read are {kinds}")
    return images


def find_mask(masks: dict[str, Path] | None, stem: str, defect: str, image: Path, folder: Path) -> SourceFile | None:
    """The mask of one sample, ``STEM.*`` or ``STEM_mask.*``.

    Args:
        masks: what lies in ``folder``, by stem; None where the class has no such folder at all.
        stem: of the image.
        defect: ``good`` samples may lack their mask.
        image: for the message.
        folder: where masks of this defect belong.

    Raises:
        ValueError: there are masks, but none for this anomalous sample.
    """
    if masks is None:
        return None
    for name in (f"{stem}_mask", stem):
        if name in masks:
            return SourceFile.of(masks[name])
    if defect == GOOD:
        return None
    raise ValueError(f"{image} has no mask {stem}_mask.* or {stem}.* in {folder}; add it or remove the image")


def sample_key(class_name: str, split: Split, defect: str, stem: str) -> str:
    """A key that WebDataset takes (no dots), readable in file names."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in (class_name, split, defect, stem))


def unique_keys(samples: Iterable[SourceSample]) -> list[SourceSample]:
    """Number the keys that different file names were turned into alike (``a.b`` and ``a_b``)."""
    used: set[str] = set()
    result = []
    for sample in samples:
        key, number = sample.key, 1
        while key in used:
            number += 1
            key = f"{sample.key}-{number}"
        used.add(key)
        result.append(sample if key == sample.key else SourceSample(**{**sample.__dict__, "key": key}))
    return result
