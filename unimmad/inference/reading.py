"""One sample's images, decoded, and the views of the model's size that are cut from them: what an engine scores.

Letters: M modalities of a sample, C = 3 channels, H x W the model's image size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimmad.data.decode import as_image, check_same_size, decode
from unimmad.data.decode_limits import read_image_file
from unimmad.data.depth_image import read_depth
from unimmad.data.depth_range import check_dtype
from unimmad.data.edges import Overlap, overlaps
from unimmad.data.index import Modality
from unimmad.data.layouts.converted import CONVERTED_SUFFIXES, as_png
from unimmad.data.layouts.source_set import READ_SUFFIX_LIST, READ_SUFFIXES
from unimmad.data.look import Look, look_at
from unimmad.data.prepare import as_channels, normalisation, seen_pixels, stored_pixels
from unimmad.data.value_range import beyond_range_note
from unimmad.data.views import STRETCHED, Geometry, View
from unimmad.inference.catalogue import Catalogue, Match
from unimmad.inference.inputs import EncodedImage, ImageSource, InputSample
from unimmad.inference.pictures import Picture, panel_size, picture_of
from unimmad.serialization.text import one_line, shown

IN_BANK = "this image is in the class's own bank, so that its score says nothing"


@dataclass(frozen=True)
class PreparedSample:
    """A sample, or one view of it at the model's size; not normalised yet."""

    name: str
    files: dict[str, str]
    """By modality name; empty where images were given as arrays."""
    match: Match
    asked_class: str | None
    """Class that was named, known or not."""
    size: tuple[int, int]
    """Height and width that its images came in."""
    views: tuple[View, ...]
    """By which it is scored."""
    images_MCHW: Tensor
    """float32: RGB and gray in 0-1, depth about its foreground's mean; in the order of ``match.modalities``. Empty of a
    sample with several views, which are still to be cut."""
    pictures: tuple[tuple[str, Picture], ...]
    """Name and picture of each modality, where they were asked for."""
    notes: tuple[str, ...] = ()
    """What one should know of its images."""
    pixels: tuple[np.ndarray, ...] = ()
    """What ``stored_pixels`` made of each image; empty of a sample with one view."""
    look: Look | None = None
    """The region of interest; None where all is looked at."""
    weights_HW: Tensor | None = None
    """Of one view: float32, 0 (not looked at) to 1, of each of its picture's pixels."""
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """How the edges of each modality but the first lie over the first one's."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return self.match.modalities

    @property
    def modality_names(self) -> tuple[str, ...]:
        return tuple(modality.name for modality in self.match.modalities)

    def cut(self, view: View) -> PreparedSample:
        """What an engine scores of one view."""
        if not self.pixels:
            return self
        weights_HW = None if self.look is None else self.look.of_view(view)
        return replace(self, images_MCHW=self.seen(view), weights_HW=weights_HW, pixels=(), pictures=())

    def seen(self, view: View) -> Tensor:
        """A view's picture, as ``images_MCHW``."""
        of_kinds = zip(self.pixels, self.modalities, strict=True)
        return torch.stack([as_channels(seen_pixels(pixels, modality.kind, view)) for pixels, modality in of_kinds])


def prepare_sample(
    sample: InputSample,
    catalogue: Catalogue,
    class_name: str | None,
    image_size: int,
    with_pictures: bool,
    geometry: Geometry = STRETCHED,
    in_banks: Mapping[str, Set[str]] | None = None,
) -> PreparedSample:
    """Decode the images of a sample of any size, bit depth and known modalities.

    ``in_banks``: by class, ``pixels_digest`` of images that its bank was made of, which a note tells.

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
    stored, pictures, files = [], [], {}
    notes: list[str] = []
    first: tuple[str, tuple[int, ...]] | None = None
    held = (in_banks or {}).get(match.class_name or "", frozenset())
    digests: list[str] = []
    for modality in match.modalities:
        source = sample.images[modality.name] if isinstance(sample.images, Mapping) else sample.images
        array, where, of_file = _decoded(source, f"{sample.name}, {modality.name}")
        first = first or (where, array.shape)
        digests += [_digest(array)] if held else []
        check_same_size(where, array.shape, *first)
        pixels, of_values = _read_values(array, modality, where)
        stored.append(pixels)
        notes += [f"{modality.name}: {note}" for note in of_file]
        notes += of_values
        if isinstance(source, str | PathLike):
            files[modality.name] = str(source)
        if with_pictures:
            pictures.append((modality.name, picture_of(pixels, modality.kind, panel_size(array.shape))))
    if held and _joined(digests) in held:
        notes.append(IN_BANK)
    height, width = stored[0].shape[:2]
    prepared = PreparedSample(
        sample.name,
        files,
        match,
        class_name,
        (height, width),
        geometry.views((height, width), image_size),
        torch.empty(0),
        tuple(pictures),
        tuple(note for note in notes if note),
        tuple(stored),
    )
    assert first is not None
    outline, kinds = geometry.outline((height, width), image_size), [modality.kind for modality in match.modalities]
    look = look_at(
        catalogue.rois.of(match.class_name),
        outline,
        lambda: normalised_images(prepared.seen(outline), match.modalities),
        kinds,
        prepared.size,
        first[0],
    )
    prepared = replace(prepared, look=look)
    if len(prepared.views) > 1:
        return _with_overlaps(prepared, prepared.seen(outline) if len(kinds) > 1 else torch.empty(0), outline)
    only = prepared.cut(prepared.views[0])  # what is not needed any more makes room
    return _with_overlaps(replace(only, pictures=prepared.pictures), only.images_MCHW, outline)


def _with_overlaps(sample: PreparedSample, images_MCHW: Tensor, view: View) -> PreparedSample:
    """By what the modalities show through ``view``, without its padding."""
    names = sample.modality_names
    inside_MCHW = images_MCHW[(..., *view.target.pixels)] if len(names) > 1 else images_MCHW
    return replace(sample, overlaps=overlaps(inside_MCHW, names))


def _read_values(array: np.ndarray, modality: Modality, where: str) -> tuple[np.ndarray, list[str]]:
    """``stored_pixels`` of an image, and what one should know of its values, held against those of training."""
    if modality.kind != "depth":
        pixels = stored_pixels(array, modality, where)
        return pixels, [note for note in (beyond_range_note(array, modality), _channels_note(array, modality)) if note]
    depth = read_depth(array, modality, where)
    notes = [check_dtype(array.dtype, modality, where)]
    if depth.no_data_note:
        notes.append(f"{modality.name}: {depth.no_data_note}")
    if not depth.measured_HW.any():
        notes.append(f"{modality.name}: no pixel was measured")
    return depth.centred(), [note for note in notes if note]


def _channels_note(array: np.ndarray, modality: Modality) -> str:
    """What to say of gray where colours are asked for, or colours where gray is; empty where nothing."""
    if modality.kind == "rgb" and array.ndim == 2:
        return f"{modality.name}: gray, read as the same in all three channels"
    if modality.kind == "gray" and array.ndim == 3 and (array[:, :, 1:3] != array[:, :, :1]).any():
        return f"{modality.name}: in colours, read as gray by their luminance"
    return ""


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
        if not isinstance(source, str | PathLike | np.ndarray | EncodedImage):
            raise ValueError(
                f"{', '.join(filter(None, (sample.name, name)))}: an image is a file's path or a NumPy array, not "
                f"{type(source).__name__} {shown(source)}"
            )


def pixels_digest(sample: InputSample) -> str:
    """Of a sample's decoded images, whatever they are called and wherever they come from.

    Raises:
        ValueError: one can't be read.
    """
    return _joined([_digest(pixels) for pixels in _pixels(sample)])


def is_blank(sample: InputSample) -> bool:
    """Whether each of its images holds one value only.

    Raises:
        ValueError: one can't be read.
    """
    return all(bool((pixels == pixels.flat[0]).all()) for pixels in _pixels(sample))


def _pixels(sample: InputSample) -> Iterator[np.ndarray]:
    """Of each of its images."""
    for source in sample.images.values() if isinstance(sample.images, Mapping) else [sample.images]:
        yield _decoded(source, sample.name)[0]


def _digest(pixels: np.ndarray) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.name}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _joined(digests: Sequence[str]) -> str:
    """That of a sample, of those of its images."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _decoded(source: ImageSource, where: str) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """The image's array, what to call it in messages, and what one should know of its file."""
    if isinstance(source, np.ndarray):
        return as_image(source, where), where, ()
    if isinstance(source, EncodedImage):
        data, suffix = source.data, Path(source.name).suffix.lower()
        where = f"{where} ({one_line(source.name)})"
    else:
        path = Path(source)
        try:
            data = read_image_file(path)
        except OSError as error:
            raise ValueError(f"{path}: can't be read ({error.strerror})") from None
        suffix, where = path.suffix.lower(), str(path)
    if suffix not in READ_SUFFIXES:
        raise ValueError(f"{where}: type {one_line(suffix) or '(none)'} is not read; use one of {READ_SUFFIX_LIST}")
    if suffix in CONVERTED_SUFFIXES:
        data, suffix = as_png(data, suffix, where), ".png"
    decoded = decode(data, suffix, where)
    return decoded.pixels, decoded.called(where), decoded.notes
