"""One sample's images, decoded and brought to the model's size: what an engine scores.

Letters: M modalities of a sample, C = 3 channels, H x W the model's image size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimmad.data.decode import check_same_size, decode_image
from unimmad.data.decode_limits import read_image_file
from unimmad.data.index import Modality
from unimmad.data.layouts.converted import CONVERTED_SUFFIXES, as_png
from unimmad.data.prepare import no_data_note, resize
from unimmad.inference.catalogue import Catalogue, Match
from unimmad.inference.inputs import ImageSource, InputSample
from unimmad.inference.pictures import Picture, panel_size, picture_of
from unimmad.serialization.text import shown


@dataclass(frozen=True)
class PreparedSample:
    """A sample at the model's size, not normalised yet."""

    name: str
    files: dict[str, str]
    """By modality name; empty where images were given as arrays."""
    match: Match
    images_MCHW: Tensor
    """float32: RGB and gray in 0-1, depth about its foreground's mean; in the order of ``match.modalities``."""
    pictures: tuple[tuple[str, Picture], ...]
    """Name and picture of each modality, where they were asked for."""
    notes: tuple[str, ...] = ()
    """What one should know of its images."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.match.modalities

    @property
    def modality_names(self) -> tuple[str, ...]:
        return tuple(modality.name for modality in self.match.modalities)


def prepare_sample(
    sample: InputSample, catalogue: Catalogue, class_name: str | None, image_size: int, with_pictures: bool
) -> PreparedSample:
    """Decode and resize the images of a sample of any size, bit depth and known modalities.

    Raises:
        ValueError: an image can't be read, does not fit its modality, or differs in size from the sample's others; what
            was given is none; or modalities as ``Catalogue.match``. Names sample and file.
    """
    _check_given(sample)
    names = list(sample.images) if isinstance(sample.images, Mapping) else None
    try:
        match = catalogue.match(names, class_name)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from None
    images, pictures, files, notes = [], [], {}, []
    first: tuple[str, tuple[int, ...]] | None = None
    for modality in match.modalities:
        source = sample.images[modality.name] if isinstance(sample.images, Mapping) else sample.images
        array, where = _decoded(source, f"{sample.name}, {modality.name}")
        first = first or (where, array.shape)
        check_same_size(where, array.shape, *first)
        images.append(resize(array, modality, image_size, where))
        notes.append(no_data_note(array, modality, where))
        if not isinstance(source, np.ndarray):
            files[modality.name] = str(source)
        if with_pictures:
            pictures.append((modality.name, picture_of(array, modality, panel_size(array.shape), where)))
    return PreparedSample(
        sample.name, files, match, torch.stack(images), tuple(pictures), tuple(note for note in notes if note)
    )


def _check_given(sample: InputSample) -> None:
    """Python does not hold anybody to the types that are asked for."""
    images = sample.images
    by_name = images if isinstance(images, Mapping) else {"": images}
    if not by_name:
        raise ValueError(
            f"{sample.name}: no image was given; pass some by modality name, such as {{'rgb': 'part.png'}}"
        )
    for name, source in by_name.items():
        if not isinstance(name, str):
            raise ValueError(f"{sample.name}: a modality's name is a str such as 'rgb', not {shown(name)}")
        if not isinstance(source, str | PathLike | np.ndarray):
            raise ValueError(
                f"{', '.join(filter(None, (sample.name, name)))}: an image is a file's path or a NumPy array, not "
                f"{type(source).__name__} {shown(source)}"
            )


def _decoded(source: ImageSource, where: str) -> tuple[np.ndarray, str]:
    """The image's array, and what to call it in messages."""
    if isinstance(source, np.ndarray):
        if source.ndim not in (2, 3) or 0 in source.shape:
            raise ValueError(f"{where}: an array of shape {source.shape}; wanted H x W or H x W x channels")
        if source.dtype.kind not in "biuf":
            raise ValueError(f"{where}: its values are {source.dtype}; wanted integers or real numbers")
        return source, where
    path = Path(source)
    try:
        data = read_image_file(path)
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None
    suffix = path.suffix.lower()
    if suffix in CONVERTED_SUFFIXES:
        data, suffix = as_png(data, suffix, str(path)), ".png"
    return decode_image(data, suffix, str(path)), str(path)
