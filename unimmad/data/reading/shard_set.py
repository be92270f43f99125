"""Several shard folders read as one set, sample by sample.

What is checked: the size of local shards when the set is opened, size and sha256 of a shard that is fetched from a URL,
and each member's header in the tar, so that a shard that is replaced while it is in use is noticed. A local shard's
sha256 is not (it would be read whole): that is ``unimmad shards verify``.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, Literal

import torch
from torch import Tensor

from unimmad.data.decode import check_same_size, decode_image, decode_mask
from unimmad.data.decode_limits import check_encoded
from unimmad.data.gc_pause import collector_paused
from unimmad.data.index import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    DatasetEntry,
    Index,
    Member,
    Modality,
    SampleEntry,
    ShardEntry,
    Split,
    load_index,
    parse_index,
    rois_of,
    with_rois,
)
from unimmad.data.joined_slots import joined_by_name
from unimmad.data.location import DataFolder, RemoteFolder, shown
from unimmad.data.prepare import model_input, resized_pixels
from unimmad.data.reading.download import FetchError, fetch
from unimmad.data.reading.resized_cache import ResizedCache, ResizedImage
from unimmad.data.reading.shard_cache import GB, ShardCache
from unimmad.data.roi import Rois, roi_weights
from unimmad.data.sample import BatchBuffer, Sample
from unimmad.data.writing.tar_headers import is_header_of
from unimmad.serialization.text import one_line

logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 128
"""File handles a process keeps; the one opened first is closed beyond that."""


class CorruptSampleError(ValueError):
    """A sample that cannot be read: its message names shard and member, ``shard`` the shard alone."""

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(message)
        self.shard = shard

    def __reduce__(self) -> tuple[type[CorruptSampleError], tuple[str, str]]:
        return type(self), (self.shard, str(self))


@dataclass(frozen=True)
class SampleRef:
    """Where to find one sample: its folder's position in the ``ShardSet``, and its entry in that index."""

    folder: int
    entry: SampleEntry

    @property
    def class_name(self) -> str:
        """``DATASET/CLASS``."""
        return f"{self.entry.dataset}/{self.entry.class_name}"


class ShardSet:
    """Shard folders joined; samples are read by offset. Picklable; safe in loader workers of any kind."""

    def __init__(
        self,
        folders: Sequence[DataFolder],
        indexes: Sequence[Index],
        cache: ShardCache,
        known: Mapping[str, DatasetEntry] | None = None,
    ) -> None:
        self.folders = tuple(folders)
        self.indexes = tuple(indexes)
        self.cache = cache
        self.resized: ResizedCache | None = None
        """Where images are kept that ``read`` has resized, and looked for first. Masks are always read again."""
        self.datasets: dict[str, DatasetEntry] = joined_by_name(_stored(indexes), known)
        """By name; one slot for one modality's name, which need not be the one in the index."""
        for name, entry in _stored(indexes).items():
            if moved := [m for m in self.datasets[name].modalities if m not in entry.modalities]:
                said = ", ".join(f"{modality.name} in {modality.slot}" for modality in moved)
                logger.info("slots go by modalities' names: %s has %s", name, said)
        self._open_shards: dict[tuple[int, int], io.FileIO] = {}

    @classmethod
    def open(
        cls,
        folders: Sequence[DataFolder],
        cache: ShardCache | None = None,
        known: Mapping[str, DatasetEntry] | None = None,
    ) -> ShardSet:
        """Read the indexes of ``folders`` and check that local shards are there and whole in size.

        Args:
            folders: paths, and URLs from ``location.parse_data_folder``.
            cache: where shards from URLs are kept; None: the default one.
            known: datasets that a model was trained on, whose slots decide (``joined_slots``).

        Raises:
            ValueError: no folder given, no or a broken index, a shard missing or cut short, one data-set
                name in two folders, or ``joined_by_name``'s.
        """
        if not folders:
            raise ValueError("no data folder given; make one with unimmad shards")
        indexes = [_index_of(folder) for folder in folders]
        _check_names(folders, indexes)
        for folder, index in zip(folders, indexes, strict=True):
            if isinstance(folder, Path):
                _check_shards(folder, index)
        cache = cache or ShardCache.of()
        if not all(isinstance(folder, Path) for folder in folders):
            logger.info("shards from URLs are kept in %s, %g GB at most", cache.folder, cache.limit_bytes / GB)
        return cls(folders, indexes, cache, known)

    @property
    def max_slot(self) -> int:
        """The highest input slot that any modality uses."""
        return max(modality.slot for entry in self.datasets.values() for modality in entry.modalities)

    @property
    def channels(self) -> int:
        """Input channels that the slots in use span: three a slot."""
        return 3 * (self.max_slot + 1)

    def classes(self, split: Split) -> dict[str, tuple[SampleRef, ...]]:
        """Samples of ``split`` by ``DATASET/CLASS``, folder by folder in the order of their indexes."""
        with collector_paused():
            return {
                name: tuple(SampleRef(number, entry) for entry in entries)
                for number, index in enumerate(self.indexes)
                for name, entries in index.classes(split).items()
            }

    @property
    def rois(self) -> Rois:
        """Where to look, by class."""
        return rois_of(self.datasets)

    def with_rois(self, rois: Rois) -> ShardSet:
        """The same samples with other regions of interest."""
        changed = copy.copy(self)
        names = {f"{sample.dataset}/{sample.class_name}" for index in self.indexes for sample in index.samples}
        changed.indexes = tuple(
            index.model_copy(update={"datasets": with_rois(index.datasets, rois, names)}) for index in self.indexes
        )
        changed.datasets = with_rois(self.datasets, rois, names)  # whose slots need not be the indexes'
        return changed

    def digest(self) -> str:
        """SHA-256 of the indexes, and by the sums in them of the shards."""
        digest = hashlib.sha256()
        for index in self.indexes:
            digest.update(index.model_dump_json().encode())
        stored = _stored(self.indexes)
        for name, entry in self.datasets.items():
            if entry != stored[name]:
                digest.update(f"{name} {entry.model_dump_json()}".encode())
        return digest.hexdigest()

    def has(self, split: Split) -> bool:
        """Whether there is any sample of ``split``."""
        return any(entry.split == split for index in self.indexes for entry in index.samples)

    def read(
        self,
        ref: SampleRef,
        image_size: int,
        mask_resize: Literal["nearest", "bilinear"] = "nearest",
        buffer: BatchBuffer | None = None,
        with_mask: bool = True,
    ) -> Sample:
        """Read, decode and prepare one sample.

        Args:
            ref: from ``classes``.
            image_size: side of the images and the mask, in pixels.
            mask_resize: see ``decode.decode_mask``.
            room: where the images go; None: to memory of their own.
            with_mask: False leaves the mask and the weights of the region of interest None.

        Raises:
            CorruptSampleError: a member cannot be read or does not decode; names shard and member.
            ValueError: the shard cannot be fetched, or the class's region of interest is of images of another shape.
        """
        try:
            sample, shape = self._read_images(ref, image_size, buffer)
            mask_HW = self._read_mask(ref, image_size, shape, mask_resize) if with_mask else None
        except (FetchError, CorruptSampleError):
            raise
        except ValueError as error:
            raise CorruptSampleError(self._shard_name(ref), str(error)) from None
        # Of a region that does not fit, no sample is to blame.
        weights_HW = self._weights(ref, sample, shape) if with_mask else None
        return replace(sample, mask_HW=mask_HW, weights_HW=weights_HW)

    def _read_images(
        self, ref: SampleRef, image_size: int, buffer: BatchBuffer | None
    ) -> tuple[Sample, tuple[int, ...]]:
        """The sample without its mask, and its images' stored shape."""
        entry = ref.entry
        present = [m for m in self.datasets[entry.dataset].modalities if m.name in entry.images]
        present.sort(key=lambda modality: modality.slot)
        images_MCHW = (buffer or BatchBuffer(len(present), image_size)).take(len(present))
        shape: tuple[int, ...] = ()
        for modality, image_CHW in zip(present, images_MCHW, strict=True):
            member = entry.images[modality.name]
            image = self._resized(ref, member, modality, image_size)
            shape = shape or image.stored_size
            check_same_size(self._where(ref, member), image.stored_size, "the sample's first image", shape)
            model_input(image.pixels, modality.kind, out=image_CHW)
        sample = Sample(
            key=entry.key,
            dataset=entry.dataset,
            class_name=ref.class_name,
            defect=entry.defect,
            anomalous=entry.anomalous,
            modalities=tuple(modality.name for modality in present),
            slots=tuple(modality.slot for modality in present),
            images_MCHW=images_MCHW,
            mask_HW=None,
        )
        return sample, shape

    def _resized(self, ref: SampleRef, member: Member, modality: Modality, image_size: int) -> ResizedImage:
        cache = self.resized if self.resized and self.resized.image_size == image_size else None
        sha256 = self._shard(ref).sha256
        if cache and (kept := cache.get(sha256, member, modality)):
            return kept
        where = self._where(ref, member)
        array = decode_image(self.member_bytes(ref, member), os.path.splitext(member.name)[1], where)
        image = ResizedImage(resized_pixels(array, modality, image_size, where), (array.shape[0], array.shape[1]))
        if cache:
            cache.add(sha256, member, modality, image)
        return image

    def _read_mask(
        self, ref: SampleRef, size: int, shape: tuple[int, ...], resize: Literal["nearest", "bilinear"]
    ) -> Tensor | None:
        member = ref.entry.mask
        if member is None:
            return None if ref.entry.anomalous else torch.zeros(size, size, dtype=torch.bool)
        data, where = self.member_bytes(ref, member), self._where(ref, member)
        return decode_mask(data, os.path.splitext(member.name)[1], where, size, shape, resize)

    def _weights(self, ref: SampleRef, sample: Sample, shape: tuple[int, ...]) -> Tensor | None:
        dataset = self.datasets[sample.dataset]
        kind_of = {modality.name: modality.kind for modality in dataset.modalities}
        kinds = [kind_of[name] for name in sample.modalities]
        where = f"{self._shard_name(ref)}: {one_line(sample.key)}"
        return roi_weights(dataset.roi.get(ref.entry.class_name), sample.images_MCHW, kinds, shape, where)

    def _where(self, ref: SampleRef, member: Member) -> str:
        return f"{self._shard_name(ref)}: {one_line(member.name)}"

    def _shard_name(self, ref: SampleRef) -> str:
        """For messages: the path, or the URL."""
        folder, name = self.folders[ref.folder], self._shard(ref).name
        return os.path.join(folder, name) if isinstance(folder, Path) else shown(folder.file(name))

    def _shard(self, ref: SampleRef) -> ShardEntry:
        return self.indexes[ref.folder].shards[ref.entry.shard]

    def member_bytes(self, ref: SampleRef, member: Member) -> bytes:
        """One file of a sample, as it is encoded.

        Raises:
            ValueError: it is too large, can't be read, or is not where the index says.
        """
        where = self._where(ref, member)
        check_encoded(member.length, where)
        try:
            with self._shard_file(ref) as file:
                header = os.pread(file.fileno(), BLOCKSIZE, max(0, member.offset - BLOCKSIZE))
                data = os.pread(file.fileno(), member.length, member.offset)
        except OSError as error:
            raise ValueError(f"{where}: cannot be read ({error.strerror})") from None
        if len(data) != member.length:
            raise ValueError(f"{where}: the shard ends before it; write the shards again")
        if not is_header_of(header, member.name, member.length):
            raise ValueError(f"{where}: is not where the index says; was the shard replaced?")
        return data

    @contextlib.contextmanager
    def _shard_file(self, ref: SampleRef) -> Iterator[io.FileIO]:
        folder = self.folders[ref.folder]
        if isinstance(folder, Path):
            yield self._local_shard(folder, ref)
            return
        # Kept open, a shard would go on filling the disk after the cache has removed it.
        shard = self._shard(ref)
        with self.cache.open(shard, folder.file(shard.name)) as file:
            yield file

    def _local_shard(self, folder: Path, ref: SampleRef) -> io.FileIO:
        # pread has no position of its own, so handles that a forked worker inherits can be shared.
        key = (ref.folder, ref.entry.shard)
        if key not in self._open_shards:
            if len(self._open_shards) >= MAX_OPEN_SHARDS:
                self._open_shards.pop(next(iter(self._open_shards))).close()
            self._open_shards[key] = io.FileIO(folder / self._shard(ref).name)
        return self._open_shards[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}


def _stored(indexes: Sequence[Index]) -> dict[str, DatasetEntry]:
    return {name: entry for index in indexes for name, entry in index.datasets.items()}


def _index_of(folder: DataFolder) -> Index:
    if isinstance(folder, RemoteFolder):
        url = folder.file(INDEX_NAME)
        return parse_index(fetch(url, MAX_INDEX_BYTES), shown(url))
    return load_index(folder)


def _check_names(folders: Sequence[DataFolder], indexes: Sequence[Index]) -> None:
    first_folder: dict[str, DataFolder] = {}
    for folder, index in zip(folders, indexes, strict=True):
        for name in index.datasets:
            if name in first_folder:
                raise ValueError(
                    f"dataset {name} is in both {first_folder[name]} and {folder}; give each folder once, "
                    "or write one of them again with another --name"
                )
            first_folder[name] = folder


def _check_shards(folder: Path, index: Index) -> None:
    for shard in index.shards:
        path = folder / shard.name
        if not path.is_file():
            raise ValueError(f"shard {path} is missing; copy it again or write the shards again")
        size = path.stat().st_size
        if size != shard.bytes:
            raise ValueError(
                f"shard {path} is {size} bytes, but the index says {shard.bytes}: it was cut short or changed"
                "; copy it again or write the shards again"
            )
