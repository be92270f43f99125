"""index.json: what a folder of shards holds.

A shard is a plain WebDataset tar: ``key.json`` + one member a modality (``key.0.png``, ``key.1.npy``, numbered by
slot) + ``key.mask.png``. The index beside the shards names every data set, class, modality, sample and member, with
offset and length, so that one sample can be read without scanning its shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimmad.data.collector import collector_paused
from unimmad.documents import read_limited, short

INDEX_NAME = "index.json"
FORMAT: Literal[1] = 1
MAX_INDEX_BYTES = 2**30

ModalityKind = Literal["rgb", "gray", "depth"]
Split = Literal["train", "test", "calibration"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Modality(_Frozen):
    """One imaging modality of a data set."""

    name: str
    slot: Annotated[int, Field(ge=0)]
    """Which three of the model's input channels it fills."""
    kind: ModalityKind
    scale: float = 1.0
    """Depth only: metres per stored unit, after integer formats were divided by their largest value."""
    invalid: float | None = None
    """Depth only: the stored value that means "no measurement" (before scaling); None: every pixel is valid."""


class DatasetEntry(_Frozen):
    """One data set: its field (industry, medicine, ...) and the modalities its samples may have."""

    field: str
    modalities: tuple[Modality, ...]


# Members and samples are many; as pydantic's models they would take three times the memory.
@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file inside a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    offset: Annotated[int, Field(ge=0)]
    """Bytes from the start of the shard to the member's data."""
    length: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEntry:
    """One sample and where its members lie."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    key: str
    dataset: str
    class_name: str
    """Without the data set's name."""
    split: Split
    """``calibration``: normal samples kept out of training, for setting thresholds."""
    defect: str
    """``good`` or the name of the defect."""
    anomalous: bool
    shard: Annotated[int, Field(ge=0)]
    """Position in ``Index.shards``."""
    images: dict[str, Member]
    """By modality name; a missing modality is absent."""
    mask: Member | None = None


class ShardEntry(_Frozen):
    """One tar file, named relative to the index."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.tar$")]
    """A plain file name: it becomes part of paths, URLs and commands."""
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    samples: Annotated[int, Field(ge=0)]


class Index(_Frozen):
    """All of a shard folder. ``samples`` are grouped by class and split, in the order they lie in the shards."""

    format: Literal[1] = FORMAT
    source: str
    """What the shards were made from, in words."""
    datasets: dict[str, DatasetEntry]
    shards: tuple[ShardEntry, ...]
    samples: tuple[SampleEntry, ...]

    def classes(self, split: Split) -> dict[str, list[SampleEntry]]:
        """Samples of ``split`` by ``DATASET/CLASS``, in index order."""
        groups: dict[str, list[SampleEntry]] = {}
        for sample in self.samples:
            if sample.split == split:
                groups.setdefault(f"{sample.dataset}/{sample.class_name}", []).append(sample)
        return groups


def load_index(folder: Path) -> Index:
    """Read and check ``folder/index.json``.

    Raises:
        ValueError: no such folder, no index in it, or one that is cut short or of another form.
    """
    path = folder / INDEX_NAME
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist; make one with tools/make_shards.py")
    if not path.is_file():
        raise ValueError(f"{folder} holds no {INDEX_NAME}: it is no shard folder; make one with tools/make_shards.py")
    return parse_index(read_limited(path, MAX_INDEX_BYTES), str(path))


def parse_index(data: bytes, origin: str) -> Index:
    """Check the bytes of an ``index.json``; ``origin`` names it in errors.

    Raises:
        ValueError: cut short, of another form, or a sample of a shard or data set that is not listed.
    """
    try:
        with collector_paused():
            index = Index.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = short(".".join(str(part) for part in first["loc"])) or "the file"
        raise ValueError(
            f"{origin}: {where}: {first['msg']}; write the shards anew with tools/make_shards.py"
        ) from None
    for sample in index.samples:
        if sample.shard >= len(index.shards) or sample.dataset not in index.datasets:
            raise ValueError(
                f"{origin}: sample {sample.key} lies in shard {sample.shard} of data set {sample.dataset}, which "
                "is not listed; write the shards anew with tools/make_shards.py"
            )
    return index
