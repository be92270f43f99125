"""Several shard folders read as one set, sample by sample.

What is checked: the size of local shards when the set is opened, size and sha256 of a shard that is fetched from a URL,
and each member's header in the tar, so that a shard that is replaced while it is in use is noticed. A local shard's
sha256 is not (it would be read whole): that is ``unimmad shards verify``.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimmad.data.decode import check_same_size, decode, decode_image, marked_pixels
from unimmad.data.gc_pause import collector_paused
from unimmad.data.index import (
    DatasetEntry,
    Index,
    Member,
    Modality,
    Split,
    rois_of,
    with_rois,
)
from unimmad.data.joined_slots import joined_by_name
from unimmad.data.location import DataFolder
from unimmad.data.look import look_at
from unimmad.data.mask_resize import NOTHING_LOST, MaskLoss, MaskRule, mask_loss, resized_mask
from unimmad.data.prepare import model_input, resized_pixels, stored_pixels
from unimmad.data.reading.download import FetchError
from unimmad.data.reading.resized_cache import ResizedCache, ResizedImage
from unimmad.data.reading.shard_cache import GB, ShardCache
from unimmad.data.reading.shard_files import SampleRef, ShardFiles, checked_indexes
from unimmad.data.reading.view_draw import ViewDraw
from unimmad.data.roi import Roi, Rois
from unimmad.data.sample import BatchBuffer, Sample, StoredImages
from unimmad.data.views import Aspect, Resolution, View, whole
from unimmad.serialization.text import one_line

logger = logging.getLogger(__name__)


class CorruptSampleError(ValueError):
    """A sample that cannot be read: its message names shard and member, ``shard`` the shard alone."""

    def __init__(self, shard: str, message: str) -> None:
        super().__init__(message)
        self.shard = shard

    def __reduce__(self) -> tuple[type[CorruptSampleError], tuple[str, str]]:
        return type(self), (self.shard, str(self))


class ShardSet(ShardFiles):
    """Shard folders joined; samples are read by offset. Picklable; safe in loader workers of any kind."""

    def __init__(
        self,
        folders: Sequence[DataFolder],
        indexes: Sequence[Index],
        cache: ShardCache,
        known: Mapping[str, DatasetEntry] | None = None,
    ) -> None:
        super().__init__(folders, indexes, cache)
        self.resized: ResizedCache | None = None
        """Where images are kept that ``read`` has resized, and looked for first. Masks are always read again."""
        self.datasets: dict[str, DatasetEntry] = joined_by_name(_stored(indexes), known)
        """By name; one slot for one modality's name, which need not be the one in the index."""
        for name, entry in _stored(indexes).items():
            if moved := [m for m in self.datasets[name].modalities if m not in entry.modalities]:
                said = ", ".join(f"{modality.name} in {modality.slot}" for modality in moved)
                logger.info("slots go by modalities' names: %s has %s", name, said)

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
        indexes = checked_indexes(folders)
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

    def those(self, wanted: Callable[[SampleRef], bool]) -> ShardSet:
        """The ``wanted`` samples alone; of datasets without any nothing is left."""
        changed = copy.copy(self)
        changed.indexes = tuple(
            index.model_copy(
                update={"samples": tuple(entry for entry in index.samples if wanted(SampleRef(number, entry)))}
            )
            for number, index in enumerate(self.indexes)
        )
        left = {entry.dataset for index in changed.indexes for entry in index.samples}
        changed.datasets = {name: entry for name, entry in self.datasets.items() if name in left}
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
        mask_resize: MaskRule = "nearest",
        buffer: BatchBuffer | None = None,
        with_mask: bool = True,
        aspect: Aspect = "stretch",
        draw: ViewDraw | None = None,
        resolution: Resolution = "model",
    ) -> Sample:
        """Read, decode and prepare one sample.

        Args:
            ref: from ``classes``.
            image_size: side of the images and the mask, in pixels.
            mask_resize: how the mask comes to the images' size.
            buffer: where the images go; None: to memory of their own.
            with_mask: False leaves the mask and the weights of the region of interest None.
            aspect: how images that are not square become so.
            draw: gives the view that is read, in place of ``aspect``; None: the whole image.
            resolution: of the mask: that of the images, or its own.

        Raises:
            CorruptSampleError: a member cannot be read or does not decode; names shard and member.
            ValueError: the shard cannot be fetched, or the class's region of interest is of images of another shape.
        """
        try:
            sample = self._read_images(ref, image_size, buffer, aspect, draw)
            sample = self._with_mask(sample, ref, mask_resize, resolution) if with_mask else sample
        except (FetchError, CorruptSampleError):
            raise
        except ValueError as error:
            raise CorruptSampleError(self.shard_name(ref), str(error)) from None
        # Of a region that does not fit, no sample is to blame.
        return self._with_look(sample, ref) if with_mask else sample

    def read_stored(
        self, ref: SampleRef, frame: Callable[[tuple[int, int]], tuple[int, int]], mask_resize: MaskRule = "area"
    ) -> Sample:
        """Read and decode one sample without resizing its images; views are cut from its ``stored``, and the region of
        interest is yet to be laid over them.

        Args:
            ref: from ``classes``.
            frame: gives height and width of the mask, stretched, by those of the stored images.
            mask_resize: how the mask comes there.

        Raises:
            CorruptSampleError: as ``read``.
            ValueError: the shard cannot be fetched.
        """
        try:
            sample = self._read_stored_images(ref)
            sample = replace(sample, view=whole(sample.stored_size, frame(sample.stored_size)))
            return self._with_mask(sample, ref, mask_resize)
        except (FetchError, CorruptSampleError):
            raise
        except ValueError as error:
            raise CorruptSampleError(self.shard_name(ref), str(error)) from None

    def _read_stored_images(self, ref: SampleRef) -> Sample:
        present = self._present(ref)
        pixels: list[np.ndarray] = []
        for modality in present:
            member = ref.entry.images[modality.name]
            where = self.where(ref, member)
            array = decode_image(self.member_bytes(ref, member), os.path.splitext(member.name)[1], where)
            pixels.append(stored_pixels(array, modality, where))
            check_same_size(where, pixels[-1].shape, "the sample's first image", pixels[0].shape)
        kinds = tuple(modality.kind for modality in present)
        stored = StoredImages(kinds, tuple(pixels), self._roi(ref), self._sample_name(ref))
        return _sample(ref, present, torch.empty(0), stored.size, stored=stored)

    def _present(self, ref: SampleRef) -> list[Modality]:
        """The modalities that a sample has, in slot order."""
        present = [m for m in self.datasets[ref.entry.dataset].modalities if m.name in ref.entry.images]
        return sorted(present, key=lambda modality: modality.slot)

    def _read_images(
        self, ref: SampleRef, image_size: int, buffer: BatchBuffer | None, aspect: Aspect, draw: ViewDraw | None
    ) -> Sample:
        """The sample without its mask."""
        present = self._present(ref)
        images_MCHW = (buffer or BatchBuffer(len(present), image_size)).take(len(present))
        size: tuple[int, int] | None = None
        for modality, image_CHW in zip(present, images_MCHW, strict=True):
            member = ref.entry.images[modality.name]
            image = (
                self._resized(ref, member, modality, image_size, aspect)
                if draw is None
                else self._seen(ref, member, modality, lambda size: draw.of(size, image_size))
            )
            size = size or image.stored_size
            check_same_size(self.where(ref, member), image.stored_size, "the sample's first image", size)
            model_input(image.pixels, modality.kind, out=image_CHW)
        assert size is not None, "a sample has an image"
        view = whole(size, image_size, aspect) if draw is None else draw.of(size, image_size)
        return _sample(ref, present, images_MCHW, size, view=view)

    def _resized(
        self, ref: SampleRef, member: Member, modality: Modality, image_size: int, aspect: Aspect
    ) -> ResizedImage:
        cache = self.resized if self.resized and self.resized.holds(image_size, aspect) else None
        sha256 = self.shard_of(ref).sha256
        if cache and (kept := cache.get(sha256, member, modality)):
            return kept
        image = self._seen(ref, member, modality, lambda size: whole(size, image_size, aspect))
        if cache:
            cache.add(sha256, member, modality, image)
        return image

    def _seen(
        self, ref: SampleRef, member: Member, modality: Modality, view_of: Callable[[tuple[int, int]], View]
    ) -> ResizedImage:
        """What the view sees that ``view_of`` gives for the stored size."""
        where = self.where(ref, member)
        array = decode_image(self.member_bytes(ref, member), os.path.splitext(member.name)[1], where)
        size = (array.shape[0], array.shape[1])
        return ResizedImage(resized_pixels(array, modality, view_of(size), where), size)

    def _with_mask(self, sample: Sample, ref: SampleRef, rule: MaskRule, resolution: Resolution = "model") -> Sample:
        """With its mask at the images' size or its own, and what of it was lost on the way."""
        assert sample.view is not None
        view, marked_HW = sample.view, self._read_mask(ref, sample.stored_size)
        if resolution == "original":
            view = view.native
        if marked_HW is None:
            normal = None if ref.entry.anomalous else torch.zeros(view.size, dtype=torch.bool)
            return replace(sample, mask_HW=normal)
        mask_hw = resized_mask(marked_HW, view, rule)
        return replace(sample, mask_HW=torch.from_numpy(mask_hw), mask_loss=_loss(marked_HW, mask_hw, view, rule))

    def _read_mask(self, ref: SampleRef, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """The mask as it is stored; None where there is none."""
        member = ref.entry.mask
        if member is None:
            return None
        where = self.where(ref, member)
        decoded = decode(self.member_bytes(ref, member), os.path.splitext(member.name)[1], where)
        marked_HW = marked_pixels(decoded, where)
        check_same_size(decoded.called(where), marked_HW.shape, "its image", size)
        return marked_HW

    def _with_look(self, sample: Sample, ref: SampleRef) -> Sample:
        """With its class's region of interest."""
        assert sample.view is not None
        kinds = [modality.kind for modality in self._present(ref)]
        look = look_at(
            self._roi(ref),
            sample.view,
            lambda: sample.images_MCHW,
            kinds,
            sample.stored_size,
            self._sample_name(ref),
        )
        return sample if look is None else replace(sample, look=look, weights_HW=look.of_view(sample.view))

    def _roi(self, ref: SampleRef) -> Roi | None:
        return self.datasets[ref.entry.dataset].roi.get(ref.entry.class_name)

    def _sample_name(self, ref: SampleRef) -> str:
        return f"{self.shard_name(ref)}: {one_line(ref.entry.key)}"


def _stored(indexes: Sequence[Index]) -> dict[str, DatasetEntry]:
    """Of a dataset in several folders the regions of interest are joined; all else is the same in each."""
    stored: dict[str, DatasetEntry] = {}
    for index in indexes:
        for name, entry in index.datasets.items():
            roi = {**stored[name].roi, **entry.roi} if name in stored else entry.roi
            stored[name] = entry.model_copy(update={"roi": roi})
    return stored


def _sample(
    ref: SampleRef, present: Sequence[Modality], images_MCHW: Tensor, size: tuple[int, int], **more: Any
) -> Sample:
    """Without its mask; ``present`` are its modalities in slot order."""
    return Sample(
        key=ref.entry.key,
        dataset=ref.entry.dataset,
        class_name=ref.class_name,
        defect=ref.entry.defect,
        anomalous=ref.entry.anomalous,
        modalities=tuple(modality.name for modality in present),
        slots=tuple(modality.slot for modality in present),
        images_MCHW=images_MCHW,
        mask_HW=None,
        stored_size=size,
        **more,
    )


def _loss(marked_HW: NDArray[np.bool_], mask_hw: NDArray[np.bool_], view: View, rule: MaskRule) -> MaskLoss:
    """Nothing where nothing can be lost, which is cheaper to know than to look for."""
    sees_all = (view.source.height, view.source.width) == marked_HW.shape
    if sees_all and (rule == "area" or view.shrinking <= 1):
        return NOTHING_LOST
    return mask_loss(marked_HW, mask_hw, view)
