"""One sample out of a request: its parts are read into memory, within limits, and held against what the model knows."""

from __future__ import annotations

import asyncio
import difflib
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from unimmad.data.image_type import other_type_of, type_of
from unimmad.inference.catalogue import Catalogue, nearest_name
from unimmad.inference.inputs import EncodedImage, InputSample
from unimmad.serialization.text import listed, one_line, shown
from unimmad.serving.batching import Question

UNNAMED = "image"
"""The part of an image that is sent without its modality's name."""
FIELDS = ("class", "dataset", "name", "map")
"""Parts that are not images."""
MAPS = ("npy", "png")
MOST_FIELDS = 8
MOST_FIELD_BYTES = 4096
LONGEST_NAME = 200
CLOSE = {"Connection": "close"}
"""Of an answer to a request whose rest is not read."""


@dataclass(frozen=True)
class UploadLimits:
    """What a request may be."""

    most_bytes: int = 64 * 2**20
    """Of a request's body."""
    seconds: float = 30.0
    """In which it must have arrived."""

    def __post_init__(self) -> None:
        if self.most_bytes < 1:
            raise ValueError(f"a limit of {self.most_bytes} bytes lets no image through")
        if not 0 < self.seconds <= 3600:
            raise ValueError(
                f"a time limit of {self.seconds:g} seconds for a request must be above 0, and 3600 at most"
            )


@dataclass(frozen=True)
class Form:
    """What a request asks."""

    question: Question
    maps: tuple[str, ...]
    """Forms in which the map is wanted, of ``MAPS``."""


class _MemoryParser(MultiPartParser):
    """Keeps parts in memory: images are not written to this machine's disk."""

    spool_max_size = sys.maxsize


async def read_form(request: Request, catalogue: Catalogue, limits: UploadLimits) -> Form:
    """
    Raises:
        HTTPException: what is wrong, in one line.
        ClientDisconnect: its sender has left.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send a form (multipart/form-data) with a part for each image, called as its modality")
    try:
        async with asyncio.timeout(limits.seconds):
            form = await _parsed(request, len(catalogue.modality_names) + 1, limits.most_bytes)
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {limits.seconds:g} seconds", CLOSE) from None
    images, fields = _images_and_fields(form, catalogue.modality_names)
    maps = tuple(fields.pop("map", []))
    if unknown := [name for name in maps if name not in MAPS]:
        raise HTTPException(422, f"map {shown(unknown[0])} is not known: leave it out, or say {' or '.join(MAPS)}")
    twice = [name for name, values in fields.items() if len(values) > 1]
    if twice:
        raise HTTPException(400, f"{twice[0]} came twice: a request is one sample")
    said = {name: values[0] for name, values in fields.items()}
    name = one_line(said.get("name") or Path(next(iter(images.values())).name).stem, LONGEST_NAME)
    unnamed = list(images) == [UNNAMED] and UNNAMED not in catalogue.modality_names
    sample = InputSample(name, images[UNNAMED] if unnamed else images)
    class_name = _class_name(catalogue, said.get("dataset"), said.get("class"))
    return Form(Question(sample, class_name, "png" in maps), maps)


async def _parsed(request: Request, most_files: int, most_bytes: int) -> FormData:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        raise _too_large(most_bytes)
    parser = _MemoryParser(
        request.headers,
        _limited(request.stream(), most_bytes),
        max_files=most_files,
        max_fields=MOST_FIELDS,
        max_part_size=MOST_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise HTTPException(400, one_line(f"the form can't be read: {error}"), CLOSE) from None


async def _limited(stream: AsyncGenerator[bytes, None], most_bytes: int) -> AsyncGenerator[bytes, None]:
    arrived = 0
    async for chunk in stream:
        arrived += len(chunk)
        if arrived > most_bytes:
            raise _too_large(most_bytes)
        yield chunk


def _too_large(most_bytes: int) -> HTTPException:
    return HTTPException(413, f"a request may have {most_bytes} bytes: send smaller or compressed images", CLOSE)


def _images_and_fields(
    form: FormData, modality_names: Sequence[str]
) -> tuple[dict[str, EncodedImage], dict[str, list[str]]]:
    """Images by modality, and the values of what else was sent; what a browser sends of an empty input is left out."""
    images: dict[str, EncodedImage] = {}
    fields: dict[str, list[str]] = {}
    for name, part in form.multi_items():
        if isinstance(part, str):
            if name not in FIELDS:
                raise HTTPException(400, _not_a_field(name, modality_names))
            if part:
                fields.setdefault(name, []).append(part)
            continue
        data = part.file.read()
        if not data and not part.filename:
            continue
        if name in images:
            raise HTTPException(400, f"two images of {shown(name)} came: a request is one sample")
        images[name] = EncodedImage(data, _file_name(part.filename or "", data))
    if not images:
        raise HTTPException(
            400, f"no image came: send a part for each, called as its modality ({listed(modality_names)})"
        )
    return images, fields


def _not_a_field(name: str, modality_names: Sequence[str]) -> str:
    if name in (*modality_names, UNNAMED):
        return f"{name} came as text: send a part with a file name (curl: -F {name}=@FILE)"
    known = [*FIELDS, *modality_names]
    near = difflib.get_close_matches(name, known, n=1)
    return f"{shown(name)} is not known; " + (f"did you mean {near[0]}?" if near else f"known are {listed(known)}")


def _file_name(given: str, data: bytes) -> str:
    """With a suffix by its bytes where it has none: clients that hold an image in memory have no name for it."""
    if Path(given).suffix:
        return given
    return f"{given or UNNAMED}.{(type_of(data) or other_type_of(data) or 'png').lower()}"


def _class_name(catalogue: Catalogue, dataset: str | None, class_name: str | None) -> str | None:
    """What the detector is told. A class that it does not know is a slip: the service has no other classes to offer.

    Raises:
        HTTPException: the dataset or class is not known.
    """
    if dataset is not None and dataset not in catalogue.datasets:
        raise HTTPException(422, _unknown("dataset", dataset, list(catalogue.datasets)))
    if class_name is None:
        return None if dataset is None else f"{dataset}/"
    full = class_name if dataset is None else f"{dataset}/{class_name}"
    if not any(full in (known, known.partition("/")[2]) for known in catalogue.classes):
        raise HTTPException(422, _unknown("class", full, catalogue.classes))
    return full


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    return (
        f"{what} {shown(given)} is not one that the model was trained on: {nearest_name(given, known)}. Or leave it out"
    )
