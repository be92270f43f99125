"""What every on-disk layout needs: listing folders, naming samples, collecting notices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unimmad.data.decode import IMAGE_SUFFIXES
from unimmad.data.index import Split
from unimmad.data.layouts.source_set import SourceFile, SourceSample

GOOD = "good"
ANOMALY = "anomaly"
"""The defect's name where a dataset does not name its defects."""
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass
class Notices:
    """What a user should know about a dataset, each thing said once."""

    _lines: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self._lines[line] = None

    @property
    def lines(self) -> list[str]:
        return list(self._lines)


def visible_folders(folder: Path) -> list[Path]:
    """Sub-folders by name, without hidden ones and archivers' own; none if there is no ``folder``."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def class_folders(root: Path, notices: Notices) -> list[Path]:
    """``ROOT/CLASS`` for each folder with ``train`` or ``test`` in it; others are left out, and said so.

    Raises:
        ValueError: no such folder, one class instead of a folder of classes, an empty class, or no class in it.
    """
    check_folder(root)
    if (root / "train").is_dir():
        raise ValueError(f"{root} looks like one class, not like a folder of classes; give {root.resolve().parent}")
    classes = []
    for folder in visible_folders(root):
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            classes.append(folder)
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            notices.add(f"{folder}: left out, it has neither train nor test")
        else:
            raise ValueError(f"class {folder} is empty; add images in train/{GOOD} or move the class away")
    if not classes:
        raise ValueError(f"{root} has no class folder; wanted {root / 'CLASS' / 'train' / 'good'}")
    return classes


def read_classes(
    root: Path, notices: Notices, read_class: Callable[[Path], Sequence[SourceSample]]
) -> list[SourceSample]:
    """The samples of every class folder in ``root``.

    Raises:
        ValueError: as ``class_folders``, or a class without a training sample.
    """
    samples: list[SourceSample] = []
    for folder in class_folders(root, notices):
        read = read_class(folder)
        if not any(sample.split == "train" for sample in read):
            raise ValueError(f"class {folder} has no image in train/good; add some or move the class away")
        samples += read
    return samples


def check_folder(root: Path) -> None:
    """Raise ValueError unless ``root`` is a folder."""
    if root.is_file():
        raise ValueError(f"source {root} is a file of an unknown kind; give a folder, or a .csv, .jsonl or .json file")
    if not root.is_dir():
        raise ValueError(f"source folder {root} does not exist")


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


def note_spare_masks(masks: Mapping[str, Path] | None, stems: Iterable[str], folder: Path, notices: Notices) -> None:
    """Say which masks of ``folder`` no image goes with; arguments as :func:`find_mask`'s, with all images' stems."""
    wanted = {name for stem in stems for name in (stem, f"{stem}_mask")}
    if spare := sorted(set(masks or ()) - wanted):
        more = f" and {len(spare) - 1} more" if len(spare) > 1 else ""
        notices.add(f"{folder}: mask {spare[0]}{more} left out, without an image")


def new_sample(
    class_name: str, split: Split, defect: str, stem: str, images: dict[str, SourceFile], mask: SourceFile | None
) -> SourceSample:
    """A sample; its key is one that WebDataset takes (no dots), and readable in file names."""
    key = "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in (class_name, split, defect, stem))
    return SourceSample(key, class_name, split, defect, images, mask)


def unique_keys(samples: Iterable[SourceSample]) -> list[SourceSample]:
    """Number the keys that different file names were turned into alike (``a.b`` and ``a_b``)."""
    used: set[str] = set()
    last_number: dict[str, int] = {}
    result = []
    for sample in samples:
        key, number = sample.key, last_number.get(sample.key, 1)
        while key in used:
            number += 1
            key = f"{sample.key}-{number}"
        used.add(key)
        last_number[sample.key] = number
        result.append(replace(sample, key=key))
    return result
