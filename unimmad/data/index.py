"""index.json: what a folder of shards holds.

A shard is a plain WebDataset tar: ``key.json`` + one member a modality (``key.0.png``, ``key.1.npy``, numbered by
slot) + ``key.mask.png``. The index beside the shards names every dataset, class, modality, sample and member, with
offset and length, so that one sample can be read without scanning its shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from unimmad.data.gc_pause import collector_paused
from unimmad.data.roi import Roi, Rois
from unimmad.serialization.documents import read_limited
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

INDEX_NAME = "index.json"
FORMAT: Literal[1] = 1
MAX_INDEX_BYTES = 2**30
MAX_SLOT = 1023
MIN_SCALE, MAX_SCALE = 1e-12, 1e20
"""Metres: of picometres as real numbers, and of 64-bit integers that count metres."""

ModalityKind = Literal["rgb", "gray", "depth"]
Split = Literal["train", "test", "calibration"]
GOOD = "good"
"""The defect of normal samples."""

NAME = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*"
"""A regular expression of one name: no slash, since ``DATASET/CLASS`` is two, no dot in front, no control character."""
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
ClassName = Annotated[str, Field(pattern=f"^{NAME}/{NAME}$")]
"""``DATASET/CLASS``."""
Bytes = Annotated[int, Field(ge=0, lt=2**62)]
"""An offset or a length that file systems can have."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ANY_DTYPE = "any"


class ValueRange(_Frozen):
    """Between which stored values a picture lies: ``low`` is read as 0, ``high`` as 1; what is beyond is clipped."""

    dtype: Annotated[str, Field(pattern=r"^(any|u?int(8|16|32|64)|float(16|32|64))$")]
    """Of the images that are read so; ``any``: all number types that can hold ``high``."""
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty")
        return self


class Modality(_Frozen):
    """One imaging modality of a dataset."""

    name: Name
    """Unique in its dataset; folders and tables call the modality by it."""
    slot: Annotated[int, Field(ge=0, le=MAX_SLOT)]
    """Which three of the model's input channels it fills."""
    kind: ModalityKind
    """How stored values are read: as RGB, as one gray channel, or as depth."""
    scale: Annotated[float, Field(ge=MIN_SCALE, le=MAX_SCALE)] = 1.0
    """Depth only: metres per stored unit, after integer formats were divided by their largest value."""
    invalid: float | None = None
    """Depth only: the stored value that means "no measurement" (before scaling); None: every pixel is valid."""
    unit: Annotated[float, Field(ge=MIN_SCALE, le=MAX_SCALE)] | None = None
    """Depth only: metres that the stored value 1 stands for, in every number type; None: ``scale`` tells."""
    disparity: bool = False
    """Depth only: the values are disparities, and a pixel's depth is ``unit`` over them."""
    dtypes: tuple[str, ...] = ()
    """Depth only: number types of the training images; empty in older indexes and of published sets."""
    ranges: tuple[ValueRange, ...] = ()
    """RGB and gray only: of these number types not the whole range is used; others are read by their type's."""

    @model_serializer(mode="wrap")
    def _without_unused(self, to_dict: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later stays out where it says nothing, so that older versions read the rest."""
        later = ("unit", "disparity", "dtypes", "ranges")
        return {key: value for key, value in to_dict(self).items() if key not in later or value}


def _distinct(modalities: tuple[Modality, ...]) -> tuple[Modality, ...]:
    """One that is listed twice would count twice."""
    for what, values in (("name", [m.name for m in modalities]), ("slot", [m.slot for m in modalities])):
        if len(set(values)) < len(values):
            raise ValueError(f"two modalities share a {what}: {values}")
    return modalities


Modalities = Annotated[tuple[Modality, ...], Field(min_length=1), AfterValidator(_distinct)]


class DatasetEntry(_Frozen):
    """One dataset: its field (industry, medicine, ...), the modalities its samples may have, and where to look."""

    field: str
    modalities: Modalities
    roi: dict[Name, Roi] = {}
    """Regions of interest by class, without the dataset's name; of the other classes everything is looked at."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An older version reads what uses nothing new."""
        values: dict[str, Any] = handler(self)
        return values if self.roi else {key: value for key, value in values.items() if key != "roi"}


def rois_of(datasets: Mapping[str, DatasetEntry]) -> Rois:
    """The regions of interest of all classes."""
    return Rois({f"{name}/{short}": roi for name, entry in datasets.items() for short, roi in entry.roi.items()})


def with_rois(datasets: Mapping[str, DatasetEntry], rois: Rois, classes: Iterable[str]) -> dict[str, DatasetEntry]:
    """The datasets with the regions of ``rois``, for ``DATASET/CLASS`` among ``classes``, in place of their own."""
    found: dict[str, dict[str, Roi]] = {name: {} for name in datasets}
    for class_name in classes:
        dataset, _, short = class_name.partition("/")
        if dataset in found and (roi := rois.of(class_name)) is not None:
            found[dataset][short] = roi
    return {name: entry.model_copy(update={"roi": found[name]}) for name, entry in datasets.items()}


# Members and samples are many; as pydantic's models they would take three times the memory.
@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file inside a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    offset: Bytes
    """Bytes from the start of the shard to the member's data."""
    length: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEntry:
    """One sample and where its members lie."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    key: Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f]+$")]
    """Unique in its dataset; without dots, at which WebDataset cuts it, and slashes."""
    dataset: Name
    class_name: Name
    """Without the dataset's name."""
    split: Split
    """``calibration``: normal samples kept out of training, for setting thresholds."""
    defect: str
    """``good`` or the name of the defect."""
    anomalous: bool
    shard: Annotated[int, Field(ge=0)]
    """Position in ``Index.shards``."""
    images: Annotated[dict[str, Member], Field(min_length=1)]
    """By modality name; a missing modality is absent."""
    mask: Member | None = None
    source: str | None = None
    """The file that its first image was read from, relative to its dataset's folder; None where unknown."""


class DuplicateCounts(_Frozen):
    """Samples that are in the shards more than once."""

    exact: Annotated[int, Field(ge=0)] = 0
    """Samples of the same pixels as one before them."""
    trained_and_tested: Annotated[int, Field(ge=0)] = 0
    """Test samples of the same pixels as one to train or to calibrate on."""
    near: Annotated[int, Field(ge=0)] = 0
    """Pairs of one class that are nearly the same."""


class ShardEntry(_Frozen):
    """One tar file, named relative to the index."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.tar$")]
    """A plain file name: it becomes part of paths, URLs and commands."""
    bytes: Bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    samples: Annotated[int, Field(ge=0)]


class Index(_Frozen):
    """All of a shard folder."""

    format: Literal[1] = FORMAT
    """Version of the index's format (docs/formats.md)."""
    source: str
    """What the shards were made from, in words."""
    datasets: Annotated[dict[Name, DatasetEntry], Field(min_length=1)]
    """Field and modalities of each dataset, by its name."""
    shards: tuple[ShardEntry, ...]
    """All shards, in the order that ``SampleEntry.shard`` counts them."""
    samples: tuple[SampleEntry, ...]
    """All samples, grouped by class and split, in the order they lie in the shards."""
    duplicates: DuplicateCounts | None = None
    """None where nobody looked for them."""

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
    if folder.is_file():
        instead = folder.parent if (folder.parent / INDEX_NAME).is_file() else "the folder that unimmad shards made"
        raise ValueError(f"data {folder} is a file, not a shard folder; give {instead}")
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist; make one with unimmad shards")
    if not path.is_file():
        inner = sorted(found.parent for found in folder.glob(f"*/{INDEX_NAME}"))
        hint = f"did you mean {' or '.join(map(str, inner[:3]))}?" if inner else "make one with unimmad shards"
        raise ValueError(f"{folder} holds no {INDEX_NAME}: it is not a shard folder; {hint}")
    return parse_index(read_limited(path, MAX_INDEX_BYTES), str(path))


def parse_index(data: bytes, origin: str) -> Index:
    """Check the bytes of an ``index.json``; ``origin`` names it in errors.

    Raises:
        ValueError: cut short, of another form, or at odds with itself: see ``_contradiction``.
    """
    try:
        with collector_paused():
            index = Index.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{origin}: {first_problem(error)}; {_REMEDY}") from None
    if contradiction := _contradiction(index):
        raise ValueError(f"{origin}: {one_line(contradiction)}; {_REMEDY}")
    return index


_REMEDY = "write the shards again with unimmad shards"


def _contradiction(index: Index) -> str:
    """What is listed twice, is not listed though used, or would be read from outside its shard; empty where nothing."""
    names = [shard.name for shard in index.shards]
    if len(set(names)) < len(names):
        return f"the shard {Counter(names).most_common(1)[0][0]} is listed twice"
    modalities = {name: {modality.name for modality in entry.modalities} for name, entry in index.datasets.items()}
    seen: set[tuple[str, str]] = set()
    for sample in index.samples:
        if sample.shard >= len(names) or sample.dataset not in modalities:
            return f"sample {sample.key} lies in shard {sample.shard} of dataset {sample.dataset}, which is not listed"
        if (sample.dataset, sample.key) in seen:
            return f"the key {sample.key} of dataset {sample.dataset} is listed twice"
        seen.add((sample.dataset, sample.key))
        if unknown := sample.images.keys() - modalities[sample.dataset]:
            return f"sample {sample.key} has a modality {min(unknown)} that dataset {sample.dataset} does not have"
        if sample.anomalous is (sample.defect == GOOD) or (sample.anomalous and sample.split != "test"):
            return (
                f"sample {sample.key} of {sample.split} has the defect {sample.defect} and anomalous {sample.anomalous}"
            )
        if problem := _misplaced(sample, index.shards[sample.shard].bytes):
            return problem
    return ""


def _misplaced(sample: SampleEntry, shard_bytes: int) -> str:
    members = [*sample.images.values(), *([sample.mask] if sample.mask else [])]
    if len({member.offset for member in members}) < len(members):
        return f"sample {one_line(sample.key)} has one member twice"
    for member in members:
        if member.offset + member.length > shard_bytes:
            return f"{one_line(member.name)} lies beyond the end of its shard"
    return ""
