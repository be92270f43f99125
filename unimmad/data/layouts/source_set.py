"""A dataset as it is found (on disk or drawn by code), before it becomes shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unimmad.data.decode import IMAGE_SUFFIXES
from unimmad.data.decode_limits import read_image_file
from unimmad.data.index import GOOD, DatasetEntry, Split
from unimmad.data.layouts.converted import CONVERTED_SUFFIXES, as_png

READ_SUFFIXES = IMAGE_SUFFIXES | CONVERTED_SUFFIXES
"""Of image files, lower case."""
READ_SUFFIX_LIST = ", ".join(sorted(READ_SUFFIXES))
"""The same for messages."""


@dataclass(frozen=True)
class SourceFile:
    """One encoded image or mask; its bytes go into the shard as they are."""

    name: str
    """For messages: the path, or what drew it."""
    suffix: str
    """With the dot, lower case: ``.png``, ``.jpg``, ``.tiff``, ``.npy``."""
    read: Callable[[], bytes]
    """Picklable (a module's function, or a ``partial`` of one), for processes that write in parallel."""
    part: str = ""
    """Which picture of the file it is, where it holds several."""
    lossy: bool = False
    """Whether it was compressed with loss by a type that its bytes no longer tell: a mask counts from half scale."""

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """The bytes of ``path``, or of a type that shards do not hold, the same picture as PNG."""
        suffix = path.suffix.lower()
        if suffix in CONVERTED_SUFFIXES:
            return cls(name=str(path), suffix=".png", read=partial(_read_as_png, path), lossy=suffix == ".webp")
        return cls(name=str(path), suffix=suffix, read=partial(read_image_file, path))


def _read_as_png(path: Path) -> bytes:
    return as_png(read_image_file(path), path.suffix.lower(), str(path))


@dataclass(frozen=True)
class SourceSample:
    """One sample of a source; keys are unique within their dataset."""

    key: str
    """Unique in its dataset; without dots and slashes."""
    class_name: str
    """Name of its class, without the dataset's."""
    split: Split
    """The split that its shard will be of."""
    defect: str
    """``good`` for normal samples, else the name of the defect."""
    images: dict[str, SourceFile]
    """One file a modality, by modality name; a missing modality is absent."""
    mask: SourceFile | None
    """What marks the defect's pixels; None for normal samples, and where nobody marked them."""

    @property
    def anomalous(self) -> bool:
        return self.defect != GOOD


@dataclass(frozen=True)
class SourceSet:
    """One dataset: what ``shards.write_shards`` takes."""

    name: str
    """Name of the dataset in the shards."""
    description: str
    """Where it comes from, in words; becomes part of ``Index.source``."""
    entry: DatasetEntry
    """Its field and modalities."""
    samples: tuple[SourceSample, ...]
    """All samples of all classes and splits; a class's keep their order."""
    root: Path | None = None
    """The folder that its files' names are told relative to; None where nothing is a file."""
    published: bool = True
    """A benchmark, whose values are known and whose oddities are noted; of one's own images what values mean is found
    while shards are written, and oddities are refused."""
    invalid_told: frozenset[str] = frozenset()
    """Depth modalities of which the user said which value means "not measured"."""
