"""What every on-disk layout needs: listing folders, naming samples, collecting notices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from unimmad.data.index import Split
from unimmad.data.layouts.source_set import READ_SUFFIX_LIST, READ_SUFFIXES, SourceFile, SourceSample
from unimmad.serialization.text import listed

GOOD = "good"
ANOMALY = "anomaly"
"""The defect's name where a dataset does not name its defects."""
NORMAL_NAMES = frozenset({GOOD, "ok", "normal"})
"""In any case: what people call the folder of normal images."""
GROUND_TRUTH = "ground_truth"
SPLITS: tuple[Split, ...] = ("train", "test")
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
"""What file browsers leave everywhere."""
_MASK_ENDING = re.compile(r"[_-](mask|gt)$", re.IGNORECASE)
_MASK_FOLDERS = frozenset({"mask", "masks", "gt", "groundtruth", "label", "labels"})
"""Folders that probably hold the masks of a class, but under another name."""


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


def named(folder: Path, name: str) -> Path:
    """``folder/name``, or where there is none the sub-folder that differs from it in upper and lower case only."""
    if not (folder / name).is_dir():
        for found in visible_folders(folder):
            if found.name.lower() == name:
                return found
    return folder / name


def is_normal(folder: Path) -> bool:
    """Whether a folder's name says that its images are normal."""
    return folder.name.lower() in NORMAL_NAMES


def normal_folders(class_folder: Path) -> list[Path]:
    """``CLASS/train/good``, also as ``Good``, ``ok`` or ``normal``."""
    return [folder for folder in visible_folders(named(class_folder, "train")) if is_normal(folder)]


def holds_images(folder: Path) -> bool:
    """Whether a file right in it is of a type that is read."""
    return any(path.suffix.lower() in READ_SUFFIXES and not path.name.startswith(".") for path in folder.iterdir())


def no_training_image(class_folder: Path) -> ValueError:
    """What to say of a class without training images, with the types of the files that lie there instead."""
    files = [path for folder in normal_folders(class_folder) for path in folder.iterdir() if path.is_file()]
    types = sorted({path.suffix.lower() for path in files if path.suffix and not path.name.startswith(".")})
    instead = f", only files of type {listed(types)}; read are {READ_SUFFIX_LIST}" if types else ""
    return ValueError(
        f"class {class_folder} has no image in train/{GOOD}{instead}, neither directly nor in a folder a modality; "
        "add some or move the class away"
    )


def class_folders(root: Path, notices: Notices) -> list[Path]:
    """``ROOT/CLASS`` for each folder with ``train`` or ``test`` in it; others are left out, and said so.

    Raises:
        ValueError: no such folder, one class instead of a folder of classes, an empty class, or no class in it.
    """
    check_folder(root)
    if named(root, "train").is_dir():
        raise ValueError(f"{root} looks like one class, not like a folder of classes; give {root.resolve().parent}")
    classes = []
    for folder in visible_folders(root):
        if _is_class(folder):
            classes.append(folder)
        elif any(not path.name.startswith(".") for path in folder.iterdir()):
            notices.add(f"{folder}: left out, it has neither train nor test")
        else:
            raise ValueError(f"class {folder} is empty; add images in train/{GOOD} or move the class away")
    if not classes:
        below = [folder for folder in visible_folders(root) if any(map(_is_class, visible_folders(folder)))]
        raise ValueError(
            f"{root} has no class folder; " + did_you_mean(below)
            if below
            else f"{root} has no class folder; wanted {root / 'CLASS' / 'train' / GOOD}"
        )
    return classes


def did_you_mean(folders: Sequence[Path]) -> str:
    """The end of a message about a source that lies one folder too high; ``folders`` are those that would do."""
    return f"did you mean {' or '.join(map(str, folders[:_MOST_NAMED]))}?"


_MOST_NAMED = 3


def _is_class(folder: Path) -> bool:
    return any(named(folder, split).is_dir() for split in SPLITS)


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
            raise no_training_image(folder)
        samples += read
    return samples


def check_folder(root: Path) -> None:
    """Raise ValueError unless ``root`` is a folder."""
    if root.is_file():
        raise ValueError(f"source {root} is a file of an unknown kind; give a folder, or a .csv, .jsonl or .json file")
    if not root.is_dir():
        raise ValueError(f"source folder {root} does not exist")


def defect_folders(class_folder: Path, notices: Notices) -> Iterable[tuple[Split, Path, str]]:
    """``train/good`` and each ``test/DEFECT`` with its split and defect; what else is in ``train`` is left out.

    Folders of normal images may be called as in ``NORMAL_NAMES``; that, and what is left out, is said.
    """
    for split in SPLITS:
        for folder in visible_folders(named(class_folder, split)):
            if split == "train" and not is_normal(folder):
                notices.add(f"{folder}: left out, training takes normal samples (train/{GOOD}) only")
                continue
            if is_normal(folder) and folder.name != GOOD:
                notices.add(f"{folder}: its name says that its images are normal, as in {GOOD}")
            yield split, folder, GOOD if is_normal(folder) else folder.name
    read = {named(class_folder, name) for name in (*SPLITS, GROUND_TRUTH)}
    for folder in visible_folders(class_folder):
        if folder not in read:
            masks = folder.name.lower() in _MASK_FOLDERS
            hint = f"; if it holds the masks, call it {GROUND_TRUTH}" if masks else ""
            notices.add(f"{folder}: left out, only train and test are read{hint}")


def images_by_stem(folder: Path, notices: Notices) -> dict[str, Path]:
    """The images right in ``folder`` by name without suffix, sorted; other files are left out, and said so.

    Raises:
        ValueError: two images differ in their suffix only.
    """
    images: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.name.lower() in _LITTER or path.is_dir():
            continue
        if path.suffix.lower() not in READ_SUFFIXES:
            others.append(path)
        elif path.stem in images:
            raise ValueError(f"{path} and {images[path.stem].name} name one sample twice; remove one of them")
        else:
            images[path.stem] = path
    for suffix, count in Counter(path.suffix for path in others).items():
        notices.add(f"{folder}: {count} files of type {suffix or '(none)'} left out; read are {READ_SUFFIX_LIST}")
    if count := sum(path.suffix.lower() == ".gif" for path in images.values()):
        notices.add(f"{folder}: of {count} files of type .gif the first frame is read")
    return images


def check_called_alike(folder: Path, images: Mapping[str, Collection[str]]) -> None:
    """That the images of one sample are not called ``000`` and ``000_ir``, or ``rgb_000`` and ``ir_000``: names of two
    modalities that share their numbers, all of them, and nothing else.

    Args:
        folder: for messages.
        images: of each modality the stems of its files.

    Raises:
        ValueError: they are called so.
    """
    for (name, ours), (other, theirs) in combinations(images.items(), 2):
        numbered, others = ({_numbered(stem): stem for stem in stems} for stems in (ours, theirs))
        if "" in numbered or set(ours) & set(theirs) or len(numbered) < len(ours) or len(others) < len(theirs):
            continue
        if not numbered or set(numbered) != set(others):
            continue
        one, another = (stems[min(numbered)] for stems in (numbered, others))
        if len(numbered) > 1 or one in another or another in one:  # bolt_1 beside nut_1 are two samples
            raise ValueError(
                f"{folder}: images of one sample must be called alike in all modalities, but {name} has {one} where "
                f"{other} has {another}; rename the files of one"
            )


def _numbered(stem: str) -> str:
    """From its first digit to its last."""
    found = re.search(r"\d(?:.*\d)?", stem)
    return found[0] if found else ""


def find_masks(
    masks: dict[str, Path] | None, images: Mapping[str, Path], defect: str, folder: Path, notices: Notices
) -> dict[str, SourceFile]:
    """The masks of the samples of one folder, by their stems.

    Args:
        masks: what lies in ``folder``, by stem; None where the class has no masks at all.
        images: one of each sample, by stem.
        defect: ``good`` samples may lack their mask.
        folder: where the masks belong.
        notices: takes which masks no image goes with, and that a whole defect has none.

    Raises:
        ValueError: there are masks, but none for some of the samples.
    """
    by_sample = _masks_by_sample(masks or {})
    found = {stem: by_sample[stem] for stem in images if stem in by_sample}
    for stem, paths in found.items():
        if len(paths) > 1:
            others = " and ".join(path.name for path in paths[1:])
            notices.add(f"{folder}: {paths[0].name} is the mask of {stem}; {others} left out")
    note_spare_masks(masks, images, folder, notices)
    missing = [str(path) for stem, path in images.items() if stem not in found]
    if masks and missing and defect != GOOD:
        stem = next(stem for stem in images if stem not in found)
        raise ValueError(
            f"{missing[0]} has no mask {stem}_mask.* or {stem}.* in {folder}; add it or remove the image"
            if len(missing) == 1
            else f"{len(missing)} images have no mask NAME_mask.* or NAME.* in {folder}: {listed(missing)}; add them "
            "or remove the images"
        )
    if masks is not None and not masks and images and defect != GOOD:
        notices.add(
            f"{folder}: no masks, so the {len(images)} samples of {defect} are written without: image metrics count "
            "them, pixel metrics leave them out"
        )
    return {stem: SourceFile.of(paths[0]) for stem, paths in found.items()}


def note_spare_masks(masks: Mapping[str, Path] | None, stems: Iterable[str], folder: Path, notices: Notices) -> None:
    """Say which masks of ``folder`` no image goes with; arguments as :func:`find_mask`'s, with all images' stems."""
    by_sample = _masks_by_sample(masks or {})
    used = {path for stem in stems for path in by_sample.get(stem, ())}
    if spare := sorted(stem for stem, path in (masks or {}).items() if path not in used):
        more = f" and {len(spare) - 1} more" if len(spare) > 1 else ""
        notices.add(f"{folder}: mask {spare[0]}{more} left out, without an image")


def _masks_by_sample(masks: Mapping[str, Path]) -> dict[str, list[Path]]:
    """By the stem of the image that it may be of: ``STEM_mask`` goes before ``STEM``, other endings come last."""
    ranked: dict[str, list[tuple[int, Path]]] = {}
    for name, path in masks.items():
        ranked.setdefault(name, []).append((1, path))
        if (stem := _MASK_ENDING.sub("", name)) != name:
            ranked.setdefault(stem, []).append((0 if name.endswith("_mask") else 2, path))
    return {stem: [path for _, path in sorted(found)] for stem, found in ranked.items()}


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


def new_sample(
    class_name: str,
    split: Split,
    defect: str,
    stem: str,
    images: dict[str, SourceFile],
    mask: SourceFile | None,
    folder: str = "",
) -> SourceSample:
    """A sample, whose key tells the names of its class, split, ``folder`` (by default as the defect) and file."""
    parts = [key_part(part) for part in (class_name, split, folder or defect)]
    return SourceSample("-".join((*parts, key_part(stem, "-"))), class_name, split, defect, images, mask)


def key_part(name: str, kept: str = "") -> str:
    """A name as part of a key: letters and digits of any script, ``_`` and ``kept`` stay, all else is ``%XX``.

    Different names give different parts. WebDataset takes no dots in keys, and file systems no slashes; the others
    would have to be escaped in commands and pages.
    """
    return "".join(letter if letter.isalnum() or letter in f"_{kept}" else _percent(letter) for letter in name)


def _percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))


def unique_keys(samples: Iterable[SourceSample]) -> list[SourceSample]:
    """Number the keys of files that are called alike (in different folders of a manifest)."""
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
