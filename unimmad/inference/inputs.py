"""From paths that a user gives to samples: a file, a folder of images, or a folder with one folder a modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimmad.data.layouts.scan import Notices, check_called_alike, images_by_stem, visible_folders
from unimmad.data.layouts.source_set import READ_SUFFIX_LIST, READ_SUFFIXES
from unimmad.serialization.text import utf8_name


@dataclass(frozen=True)
class EncodedImage:
    """An image file's content without the file, as it comes over a network."""

    data: bytes
    name: str
    """The file's name: its suffix as for files, and what messages call it."""


ImageSource = Path | str | np.ndarray | EncodedImage
"""A file, its bytes, or an image already decoded: H x W or H x W x channels, of the number type that a file would
have."""

IGNORED_FOLDERS = frozenset({"gt"})
"""Masks, as the multi-modal layout keeps them beside the modalities."""


@dataclass(frozen=True)
class InputSample:
    """One sample to be scored."""

    name: str
    """What the sample is called in tables and output files; may have slashes."""
    images: ImageSource | Mapping[str, ImageSource]
    """Files or arrays by modality name, or a single image without one."""


def find_samples(paths: Sequence[Path], modality_names: Sequence[str], notices: Notices) -> list[InputSample]:
    """The samples in ``paths``, in their order, with names that differ; what is given twice counts once.

    Args:
        paths: image files; folders of images; folders with one folder a modality, whose files of one name (without
            suffix) are one sample.
        modality_names: those that the model knows.
        notices: takes what the user should know, such as files left out.

    Raises:
        ValueError: nothing there, a file type that is not read, a folder without images, or sub-folders that are not
            modalities.
    """
    samples: list[InputSample] = []
    for path in paths:
        samples += _of_folder(path, modality_names, notices) if path.is_dir() else [_of_file(path)]
    return _with_names_that_differ(_each_once(samples, notices))


def sample_of_modalities(options: Sequence[str]) -> InputSample:
    """One sample of ``NAME=FILE`` words.

    Raises:
        ValueError: another form, a name twice, or no such file.
    """
    images: dict[str, Path] = {}
    for option in options:
        name, separator, file = option.partition("=")
        if not separator or not name or not file:
            raise ValueError(f"--modality {option}: write it as NAME=FILE, for example rgb=part.png")
        if name in images:
            raise ValueError(f"--modality {name} is given twice; one call takes one sample, or folders")
        images[name] = _checked_file(Path(file))
    return InputSample(utf8_name(next(iter(images.values())).stem), images)


def _of_file(path: Path) -> InputSample:
    return InputSample(path.stem, _checked_file(path))


def _checked_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give image files or folders")
    if path.suffix.lower() not in READ_SUFFIXES:
        raise ValueError(f"{path}: type {path.suffix or '(none)'} is not read; use one of {READ_SUFFIX_LIST}")
    return path


def _of_folder(folder: Path, modality_names: Sequence[str], notices: Notices) -> list[InputSample]:
    inner = [found for found in visible_folders(folder) if found.name not in IGNORED_FOLDERS]
    title = folder.resolve().name
    if any(found.name in modality_names for found in inner):
        return _of_modality_folders(title, inner, modality_names, notices)
    images = images_by_stem(folder, notices)
    if images:
        return [InputSample(f"{title}/{stem}", path) for stem, path in images.items()]
    if inner:
        raise ValueError(
            f"{folder} holds the folders {', '.join(found.name for found in inner)}, and none is a modality that is "
            f"known ({', '.join(modality_names)}); give folders of images, or name these by their modality"
        )
    raise ValueError(f"{folder} holds no image; read are {READ_SUFFIX_LIST}")


def _of_modality_folders(
    title: str, folders: Sequence[Path], modality_names: Sequence[str], notices: Notices
) -> list[InputSample]:
    unknown = [found for found in folders if found.name not in modality_names]
    if unknown:
        raise ValueError(
            f"{unknown[0]} is not a known modality; known are {', '.join(modality_names)}; rename it or move it away"
        )
    by_modality = {found.name: images_by_stem(found, notices) for found in folders}
    check_called_alike(folders[0].parent, by_modality)
    stems = sorted({stem for images in by_modality.values() for stem in images})
    if not stems:
        raise ValueError(f"{folders[0].parent} holds no image in {', '.join(by_modality)}")
    return [
        InputSample(f"{title}/{stem}", {name: images[stem] for name, images in by_modality.items() if stem in images})
        for stem in stems
    ]


def _each_once(samples: Sequence[InputSample], notices: Notices) -> list[InputSample]:
    """The first of those that are of the same files, whatever paths and links lead there."""
    found: dict[frozenset[tuple[str, Path]], InputSample] = {}
    for sample in samples:
        found.setdefault(_files(sample), sample)
    if repeated := len(samples) - len(found):
        was = "1 sample was" if repeated == 1 else f"{repeated} samples were"
        notices.add(f"{was} given more than once, by the same files: each counts once")
    return list(found.values())


def _files(sample: InputSample) -> frozenset[tuple[str, Path]]:
    """By modality, where they really are."""
    images = sample.images if isinstance(sample.images, Mapping) else {"": sample.images}
    return frozenset((name, Path(image).resolve()) for name, image in images.items() if isinstance(image, str | Path))


def _with_names_that_differ(samples: Sequence[InputSample]) -> list[InputSample]:
    """Those that are called alike are numbered; bytes of names that are not UTF-8 are written out."""
    used: set[str] = set()
    numbers: Counter[str] = Counter()
    result = []
    for sample in samples:
        name = first = utf8_name(sample.name)
        while name in used:
            numbers[first] += 1
            name = f"{first}-{numbers[first] + 1}"
        used.add(name)
        result.append(replace(sample, name=name))
    return result
