"""Tensors on disk as pieces of portable tensors, so that each rank writes what it holds and any layout reads it.

A file is safetensors. A whole tensor is stored under its name and shape; a piece under ``NAME@OFFSET``, flat, where
OFFSET counts elements of the flattened whole. ``index.json`` lists, for every tensor, its shape and its pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimmad.checkpoint.tensor_index import PieceEntry, TensorEntry, TensorIndex, check_index, check_stored, check_whole
from unimmad.model.finite import all_finite
from unimmad.serialization.documents import parse_json, read_json

INDEX_NAME = "index.json"
_SHAPES = "shapes"


@dataclass(frozen=True)
class TensorSlice:
    """Part (or all) of the tensor called ``name``, from element ``offset`` of its flattened form."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: int
    values: Tensor


def write_pieces(path: Path, pieces: Iterable[TensorSlice]) -> None:
    """Write one rank's pieces.

    Raises:
        OSError: the disk is full or can't be written.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for piece in pieces:
        values = piece.values.detach().cpu().contiguous()
        whole = tuple(values.shape) == piece.shape
        # A clone, since safetensors refuses views of one storage.
        tensors[piece.name if whole else f"{piece.name}@{piece.offset}"] = values.clone()
        shapes[piece.name] = list(piece.shape)
    try:
        save_file(tensors, path, metadata={_SHAPES: json.dumps(shapes)})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def build_index(folder: Path) -> dict[str, Any]:
    """List the tensors of all of a folder's files.

    Raises:
        ValueError: a tensor's pieces leave a gap or overlap.
    """
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes = parse_json(file.metadata()[_SHAPES], f"{path}: {_SHAPES}")
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, _, offset = key.partition("@")
                numel = int(torch.Size(file.get_slice(key).get_shape()).numel())
                entry = tensors.setdefault(name, {"shape": shapes[name], "pieces": []})
                entry["pieces"].append({"file": path.name, "key": key, "offset": int(offset or 0), "numel": numel})
    for name, entry in tensors.items():
        entry["pieces"].sort(key=lambda piece: piece["offset"])
        check_whole(name, entry)
    return tensors


class TensorReader:
    """Reads tensors, or ranges of them, from a folder of pieces.

    A file is opened and mapped into memory once, when something of it is first asked for, and stays so as long as the
    reader; of what is mapped the system reads only what is copied or computed with.
    """

    def __init__(self, folder: Path, without: str | None = None) -> None:
        """
        Args:
            folder: of the pieces and their index.
            without: files that hold nothing but tensors whose names begin so need not be there.

        Raises:
            ValueError: the folder has no index, one of another form, or a file that it lists is missing.
        """
        self.folder = folder
        self._files: dict[str, Any] = {}
        """By name, those that are open."""
        try:
            values = read_json(folder / INDEX_NAME)
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint {folder} has no readable {INDEX_NAME}: it is not whole ({error})") from None
        self._tensors: TensorIndex = check_index(values, str(folder / INDEX_NAME))
        self.files = {
            piece["file"]
            for name, entry in self._tensors.items()
            if without is None or not name.startswith(without)
            for piece in entry["pieces"]
        }
        """Names of those that must be there."""
        missing = sorted(file for file in self.files if not (folder / file).is_file())
        if missing:
            raise ValueError(f"checkpoint {folder} lacks {missing[0]}: it is not whole")

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entry(name)["shape"])

    def check_fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold the index and the files' headers against tensors to be filled, which may be on the meta device.

        Raises:
            ValueError: one is missing or of another shape: the checkpoint is of another recipe; or a file is damaged.
        """
        for name, tensor in tensors.items():
            if self.shape(name) != tuple(tensor.shape):
                raise ValueError(
                    f"checkpoint {self.folder} is of another recipe: {name} is {list(self.shape(name))} there and "
                    f"{list(tensor.shape)} in this one"
                )
        check_stored(self.folder, self._tensors, {name: tensor.dtype for name, tensor in tensors.items()})

    def read(self, name: str) -> Tensor:
        """The whole tensor.

        Raises:
            ValueError: the checkpoint has none of that name, its file is damaged, or a value NaN or infinite.
        """
        shape = self.shape(name)
        return torch.cat([values for _, values in self._parts(name, 0, torch.Size(shape).numel())]).reshape(shape)

    def read_into(self, target: Tensor, name: str, offset: int) -> None:
        """Fill ``target``, of one dimension, with the elements from ``offset`` on, in its own type, on its own device.

        Raises:
            ValueError: as ``read``.
        """
        for start, values in self._parts(name, offset, target.numel()):
            target[start : start + values.numel()].copy_(values)

    def _parts(self, name: str, offset: int, numel: int) -> Iterator[tuple[int, Tensor]]:
        """Where each piece's part of a range starts in that, and its values.

        Raises:
            ValueError: as ``read``.
        """
        for piece in self._entry(name)["pieces"]:
            start = max(offset, piece["offset"])
            stop = min(offset + numel, piece["offset"] + piece["numel"])
            if start < stop:
                values = self._values(piece)[start - piece["offset"] : stop - piece["offset"]]
                if not all_finite(values):
                    raise ValueError(
                        f"checkpoint file {self.folder / piece['file']}: {name} holds values that are NaN or infinite; "
                        "it is damaged: use another checkpoint of the run"
                    )
                yield start - offset, values

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._tensors:
            raise ValueError(f"checkpoint {self.folder} has no tensor {name}: it is of another model or optimizer")
        return self._tensors[name]

    def _values(self, piece: PieceEntry) -> Tensor:
        path = self.folder / piece["file"]
        try:
            if piece["file"] not in self._files:
                self._files[piece["file"]] = safe_open(path, framework="pt")
            # Not a copy, but a view of the mapped file.
            values = self._files[piece["file"]].get_tensor(piece["key"]).view(-1)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"checkpoint file {path} is damaged: {error}") from None
        if values.numel() != piece["numel"]:
            raise ValueError(
                f"checkpoint file {path} is damaged: {piece['key']} has {values.numel()} values, "
                f"and the index says {piece['numel']}"
            )
        return values
