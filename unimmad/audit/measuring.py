"""One sample read, decoded and measured; whatever is wrong with it is noted and the rest measured all the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unimmad.audit.facts import QUANTILES, ImageFacts, MaskFacts, Measured, PairFacts, SampleFacts
from unimmad.audit.image_header import read_header
from unimmad.audit.samples import AuditSample
from unimmad.data.decode import check_same_size, decode
from unimmad.data.decoded import DecodedImage
from unimmad.data.depth_image import DEPTH_FACTOR
from unimmad.data.depth_range import check_dtype
from unimmad.data.edges import SIDE, edges, overlap
from unimmad.data.index import ModalityKind
from unimmad.data.layouts.source_set import SourceFile
from unimmad.data.prepare import check_fits, seen_pixels, stored_pixels
from unimmad.data.views import whole
from unimmad.data.writing.duplicates import HASH_VALUES, perceptual_hash, pixel_digest
from unimmad.data.writing.mask_checks import read_mask
from unimmad.serialization.text import one_line

QUANTILE_PIXELS = 2**16
"""Of an image, about so many values are looked at for its quantiles."""
_TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Task:
    """What to measure of one sample."""

    audited: AuditSample
    image_size: int
    """The model's."""
    pixels_size: int
    """Of the resized images."""
    with_pixels: bool
    """Whether its resized images are asked for."""
    brief: bool = False
    """Whether an audit in brief asks: of a sample's only image no values then, and no hashes."""


def measure(task: Task) -> Measured:
    """Everything that is known of one sample alone."""
    audited, problems = task.audited, list[str]()
    arrays: dict[str, NDArray] = {}
    images: dict[str, ImageFacts] = {}
    pixels: dict[str, NDArray] = {}
    given = {modality.name: modality for modality in audited.given.modalities}
    for modality in sorted(audited.entry.modalities, key=lambda modality: modality.slot):
        if (file := audited.sample.images.get(modality.name)) is None:
            continue
        try:
            data = file.read()
            decoded = decode(data, file.suffix, file.name)
            if given[modality.name] != modality:
                check_fits(decoded.pixels, given[modality.name], file.name)
                check_dtype(decoded.pixels.dtype, modality, file.name)
            arrays[modality.name] = decoded.pixels
            if task.brief and len(audited.sample.images) == 1:
                images[modality.name] = form_facts(decoded, file.name, modality.kind)
                continue
            stored = stored_pixels(decoded.pixels, modality, file.name)
            resized = seen_pixels(stored, modality.kind, whole(stored.shape, task.pixels_size))
            images[modality.name] = image_facts(decoded, stored, resized, data, file.name, modality.kind)
            pixels[modality.name] = resized
        except (ValueError, OSError) as error:
            problems.append(_problem(file, error))
    mask = _mask(audited.sample.mask, audited.sample.anomalous, arrays, images, task.image_size, problems)
    _check_sizes(images, arrays, problems)
    facts = SampleFacts(
        dataset=audited.dataset,
        class_name=audited.class_name,
        split=audited.sample.split,
        defect=audited.sample.defect,
        key=audited.sample.key,
        images=images,
        mask=mask,
        pairs=tuple(_pairs(pixels)),
        problems=tuple(problems),
    )
    nothing = np.zeros(HASH_VALUES, np.uint8)
    hashes = {name: nothing if task.brief else perceptual_hash(arrays[name]) for name in images}
    return Measured(facts, hashes, pixels if task.with_pixels else {})


def form_facts(decoded: DecodedImage, file: str, kind: ModalityKind) -> ImageFacts:
    """Of one decoded image what its form tells, and nothing of its values."""
    array = decoded.pixels
    return ImageFacts(
        file=file,
        kind=kind,
        file_type=decoded.file_type,
        mode="",
        orientation=decoded.orientation,
        planes=decoded.planes,
        has_place=False,
        height=array.shape[0],
        width=array.shape[1],
        channels=1 if array.ndim == 2 else array.shape[2],
        dtype=str(array.dtype),
        quantiles=(),
        finite=1.0,
        bits=None,
        levels=0,
        seen_high=1.0,
        colour=False,
        digest="",
    )


def image_facts(
    decoded: DecodedImage, stored: NDArray, resized: NDArray, data: bytes, file: str, kind: ModalityKind
) -> ImageFacts:
    """Of one decoded image, of which ``prepare.stored_pixels`` are ``stored``, and these resized ``resized``."""
    array, header = decoded.pixels, read_header(data)
    finite = np.isfinite(array)
    share = float(finite.mean())
    values = _some_pixels(array)
    values = np.sort(values[np.isfinite(values)], kind="stable")  # of few bits by counting, which takes no time
    integer = array.dtype.kind in "iu"
    span_m = measured = None
    if kind == "depth":
        span_m, measured = float(np.ptp(stored)) / DEPTH_FACTOR, float((stored != 0).mean())
    return replace(
        form_facts(decoded, file, kind),
        mode=header.mode,
        has_place=header.has_place,
        quantiles=_quantiles(values, array if share == 1 else array[finite]),
        finite=share,
        bits=_bits_used(array) if integer else None,
        levels=int(np.count_nonzero(values[1:] != values[:-1])) + (values.size > 0),
        seen_high=float(resized.max()) / (255 if resized.dtype == np.uint8 else 1),
        colour=array.ndim == 3 and array.shape[2] >= 3 and bool((array[:, :, :3] != array[:, :, :1]).any()),
        digest=pixel_digest(array).hex(),
        span_m=span_m,
        measured=measured,
    )


def _some_pixels(array: NDArray) -> NDArray:
    step = max(1, round(math.sqrt(array.shape[0] * array.shape[1] / QUANTILE_PIXELS)))
    return array[::step, ::step].ravel()


def _quantiles(values: NDArray, all_values: NDArray) -> tuple[float, ...]:
    """Of ``values`` in their order, the first and the last of ``all_values``."""
    if not values.size:
        return ()
    places = np.linspace(0, len(values) - 1, QUANTILES)
    found = np.interp(places, np.arange(len(values)), values.astype(np.float64))
    found[0], found[-1] = all_values.min(), all_values.max()
    return tuple(found.tolist())


def _bits_used(array: NDArray) -> int:
    """0 where all is 0."""
    used = abs(int(np.bitwise_or.reduce(array, axis=None)))
    lowest = (used & -used).bit_length() - 1
    return used.bit_length() - lowest if used else 0


def _mask(
    mask: SourceFile | None,
    anomalous: bool,
    arrays: dict[str, NDArray],
    images: dict[str, ImageFacts],
    image_size: int,
    problems: list[str],
) -> MaskFacts | None:
    if mask is None:
        return None
    try:
        marked_HW = read_mask(mask.read(), mask.suffix, mask.name, anomalous, mask.lossy).marked_HW
        for name, array in arrays.items():
            check_same_size(f"mask {mask.name}", marked_HW.shape, f"its image {images[name].file}", array.shape)
            break
    except (ValueError, OSError) as error:
        problems.append(_problem(mask, error))
        return None
    return mask_facts(marked_HW, mask.name, image_size)


def mask_facts(marked_HW: NDArray[np.bool_], file: str, image_size: int) -> MaskFacts:
    """Of one mask."""
    labels_HW, regions = ndimage.label(marked_HW, _TOUCHING)
    smallest = int(np.bincount(labels_HW.ravel())[1:].min()) if regions else 0
    resized = Image.fromarray(labels_HW.astype(np.int32)).resize((image_size, image_size), Image.Resampling.NEAREST)
    return MaskFacts(
        file=file,
        share=float(marked_HW.mean()),
        regions=regions,
        smallest=smallest,
        smallest_at_size=smallest * image_size**2 / marked_HW.size,
        lost=regions - len(np.unique(np.asarray(resized)[np.asarray(resized) > 0])),
    )


def _check_sizes(images: dict[str, ImageFacts], arrays: dict[str, NDArray], problems: list[str]) -> None:
    (first, *others) = list(images) or [""]
    for name in others:
        try:
            check_same_size(images[name].file, arrays[name].shape, images[first].file, arrays[first].shape)
        except ValueError as error:
            problems.append(one_line(error))


def _pairs(pixels: dict[str, NDArray]) -> Iterator[PairFacts]:
    if len(pixels) < 2:
        return
    edges_of = {name: edges(_small(image)) for name, image in pixels.items()}
    for first, second in itertools.combinations(edges_of, 2):
        if edges_of[first].any() and edges_of[second].any():
            found = overlap(edges_of[first], edges_of[second])
            yield PairFacts(first=first, second=second, **found._asdict())


def _small(pixels: NDArray) -> NDArray[np.float32]:
    """One channel of ``SIDE`` x ``SIDE``."""
    grey_HW = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    picture = Image.fromarray(grey_HW.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _problem(file: SourceFile, error: ValueError | OSError) -> str:
    """A reader's own words name the file."""
    if isinstance(error, OSError):
        return one_line(f"{file.name}: cannot be read ({error.strerror or error})")
    return one_line(error)
