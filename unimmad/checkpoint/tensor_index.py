"""What a checkpoint's index.json says of its tensors: checked as it is read, and against the files' own headers."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import safetensors
import torch
from pydantic import ConfigDict, Field, TypeAdapter
from safetensors import safe_open
from typing_extensions import TypedDict

from unimmad.serialization.text import one_line
from unimmad.serialization.validation import validated

_STORED_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of safetensors."""

_REMEDY = "use another checkpoint of the run"

Count = Annotated[int, Field(ge=0, lt=2**62)]


class PieceEntry(TypedDict):
    """Part (or all) of a tensor, in one file."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors$")]
    """A plain name, in the checkpoint's folder."""
    key: str
    """The tensor's name, with ``@OFFSET`` where it is not whole."""
    offset: Count
    """First element, of the flattened whole."""
    numel: Annotated[Count, Field(gt=0)]


class TensorEntry(TypedDict):
    """One tensor and where its pieces are, in order."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    shape: Annotated[list[Count], Field(max_length=16)]
    pieces: list[PieceEntry]


TensorIndex = dict[str, TensorEntry]
_SCHEMA: TypeAdapter[TensorIndex] = TypeAdapter(TensorIndex)


def check_index(values: Any, origin: str) -> TensorIndex:
    """Parsed JSON as an index in which every tensor's pieces are its own and make it up.

    Raises:
        ValueError: it is of another form, names a file elsewhere or another tensor's piece, or leaves a gap.
    """
    tensors = validated(_SCHEMA, values, origin, _REMEDY)
    for name, entry in tensors.items():
        for piece in entry["pieces"]:
            whole = piece["offset"] == 0 and piece["numel"] == math.prod(entry["shape"])
            if piece["key"] not in ([name] if whole else []) + [f"{name}@{piece['offset']}"]:
                called = f"a piece of {name} is called {piece['key']!r}"
                raise ValueError(f"{origin}: {one_line(called)}; {_REMEDY}")
        try:
            check_whole(name, entry)
        except ValueError as error:
            raise ValueError(f"{origin}: {one_line(error)}; {_REMEDY}") from None
    return tensors


def check_whole(name: str, entry: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the pieces leave a gap or overlap.
    """
    offsets = [piece["offset"] for piece in entry["pieces"]]
    ends = list(itertools.accumulate((piece["numel"] for piece in entry["pieces"]), initial=0))
    if [*offsets, math.prod(entry["shape"])] != ends:
        raise ValueError(f"the pieces of {name} do not make up its shape {entry['shape']}")


def check_stored(folder: Path, tensors: TensorIndex, dtypes: Mapping[str, torch.dtype]) -> None:
    """Hold the entries of the tensors named in ``dtypes`` against their files' headers; reads no value.

    Raises:
        ValueError: a file is damaged, or a piece is not in it, has another shape, or is of another type than ``dtypes``
            says; each is named.
    """
    by_file: dict[str, list[tuple[str, PieceEntry]]] = defaultdict(list)
    for name in dtypes:
        for piece in tensors[name]["pieces"]:
            by_file[piece["file"]].append((name, piece))
    for file, pieces in by_file.items():
        path = folder / file
        try:
            with safe_open(path, framework="pt") as stored:
                for name, piece in pieces:
                    header = stored.get_slice(piece["key"])
                    _check_header(path, tensors[name]["shape"], piece, header, dtypes[name])
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"checkpoint file {path} is damaged: {error}") from None


def _check_header(path: Path, shape: list[int], piece: PieceEntry, header: Any, dtype: torch.dtype) -> None:
    stored = list(header.get_shape())
    if stored not in ([piece["numel"]], *([shape] if piece["numel"] == math.prod(shape) else [])):
        raise ValueError(
            f"checkpoint file {path} is damaged: {piece['key']} has the shape {stored}, "
            f"and the index says {piece['numel']} values of {shape}"
        )
    if header.get_dtype() != _STORED_TYPES[dtype]:
        raise ValueError(
            f"checkpoint file {path} is damaged: {piece['key']} is {header.get_dtype()}, not {_STORED_TYPES[dtype]}"
        )
