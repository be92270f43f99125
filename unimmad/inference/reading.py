"""One sample's images, decoded and brought to the model's size: what an engine scores.

Letters: M modalities of a sample, C = 3 channels, H x W the model's image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimmad.data.decode import as_image, check_same_size, decode
from unimmad.data.decode_limits import read_image_file
from unimmad.data.depth_range import check_dtype
from unimmad.data.index import Modality
from unimmad.data.layouts.converted import CONVERTED_SUFFIXES, as_png
from unimmad.data.prepare import depth_and_foreground, no_data_note, normalisation, resize
from unimmad.data.roi import roi_weights
from unimmad.data.value_range import beyond_range_note
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
    weights_HW: Tensor | None = None
    """float32, 0 (not looked at) to 1: the region of interest; None where all is looked at."""

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
    images, pictures, files = [], [], {}
    notes: list[str] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for modality in match.modalities:
        source = sample.images[modality.name] if isinstance(sample.images, Mapping) else sample.images
        array, where, of_file = _decoded(source, f"{sample.name}, {modality.name}")
        first = first or (where, array.shape)
        check_same_size(where, array.shape, *first)
        images.append(resize(array, modality, image_size, where))
        notes += [f"{modality.name}: {note}" for note in of_file]
        notes += _notes_of_values(array, modality, where)
        if not isinstance(source, np.ndarray):
            files[modality.name] = str(source)
        if with_pictures:
            pictures.append((modality.name, picture_of(array, modality, panel_size(array.shape), where)))
    assert first is not None
    images_MCHW = torch.stack(images)
    kinds = [modality.kind for modality in match.modalities]
    roi = catalogue.rois.of(match.class_name)
    normalised_MCHW = normalised_images(images_MCHW, match.modalities) if roi and roi.foreground else images_MCHW
    return PreparedSample(
        sample.name,
        files,
        match,
        images_MCHW,
        tuple(pictures),
        tuple(note for note in notes if note),
        roi_weights(roi, normalised_MCHW, kinds, first[1], first[0]),
    )


def _notes_of_values(array: np.ndarray, modality: Modality, where: str) -> list[str]:
    """What one should know of an image's values, held against those of training."""
    if modality.kind != "depth":
        notes = [beyond_range_note(array, modality)]
    else:
        notes = [check_dtype(array.dtype, modality, where), no_data_note(array, modality, where)]
        if not depth_and_foreground(array, modality, where)[1].any():
            notes.append(f"{modality.name}: no pixel was measured")
    return [note for note in notes if note]


def normalised_images(images_MCHW: Tensor, modalities: Sequence[Modality]) -> Tensor:
    """Images with the mean and standard deviation that the model was trained with: [M, C, H, W]."""
    statistics = [normalisation(modality.kind) for modality in modalities]
    mean_MC11, std_MC11 = (torch.tensor(values)[:, :, None, None] for values in zip(*statistics, strict=True))
    return (images_MCHW - mean_MC11) / std_MC11


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


def _decoded(source: ImageSource, where: str) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """The image's array, what to call it in messages, and what one should know of its file."""
    if isinstance(source, np.ndarray):
        return as_image(source, where), where, ()
    path = Path(source)
    try:
        data = read_image_file(path)
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None
    suffix = path.suffix.lower()
    if suffix in CONVERTED_SUFFIXES:
        data, suffix = as_png(data, suffix, str(path)), ".png"
    decoded = decode(data, suffix, str(path))
    return decoded.pixels, decoded.called(str(path)), decoded.notes
