"""Resized images kept on a node's disk, so that a training image is decoded once and not once an epoch.

    CACHE/resized/
      SIZE-SHARD_SHA256/           one shard's images at one size
        OFFSET-KIND[...].pixels    one image; written aside and renamed
      .lock                        held while room is made

What is kept is what ``prepare.resized_pixels`` gave, value by value; the rest of the preparation is cheap. Content
names it (the shard's sha256, the place in it, how the modality is read), so runs share it. The bound is kept without
counting together: at its start a process makes room, the longest unused shards of other data first, and takes an equal
share of what is free; when that is full it adds nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from unimmad.data.index import Member, Modality
from unimmad.files import write_aside

logger = logging.getLogger(__name__)

GB = 10**9
ABANDONED_SECONDS = 3600
"""A temporary file of that age has no writer any more."""

_HEADER = struct.Struct("<4sBBxxII")
"""Mark, dtype, channels (0: H x W), height and width before resizing; 16 bytes, so that what follows is aligned."""
_MARK = b"UMR1"
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


@dataclass(frozen=True)
class ResizedImage:
    """An image as ``prepare.resized_pixels`` gives it."""

    pixels: np.ndarray
    """uint8 or float32, H x W or H x W x 3."""
    stored_size: tuple[int, int]
    """Height and width before resizing."""


class ResizedCache:
    """The cache as one process sees it. Picklable: a copy has what is left of the share.

    Args:
        folder: where shards' images lie; there already.
        image_size: side of every image.
        share_bytes: what each process may add.
    """

    def __init__(self, folder: Path, image_size: int, share_bytes: int) -> None:
        self.folder = folder
        self.image_size = image_size
        self.share_bytes = share_bytes
        self._added_bytes = 0

    @classmethod
    def open(
        cls, cache_folder: Path, limit_bytes: int, image_size: int, shards: Collection[str], processes: int
    ) -> ResizedCache:
        """Make room for the images of some shards.

        Args:
            cache_folder: of the node; the images lie in ``resized`` there.
            limit_bytes: what all images there may take.
            image_size: side of every image.
            shards: sha256 of those that will be read.
            processes: of this node that will add images.

        Raises:
            ValueError: the folder can't be made or written to.
        """
        folder = cache_folder / "resized"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                free = _make_room(folder, limit_bytes, {_shard_name(image_size, sha256) for sha256 in shards})
        except OSError as error:
            raise ValueError(
                f"the cache of resized images {folder} can't be used ({error.strerror or error}); "
                "choose another folder with data.cache_folder, or set data.resized_cache_gb to 0"
            ) from None
        return cls(folder, image_size, free // max(1, processes))

    def get(self, shard_sha256: str, member: Member, modality: Modality) -> ResizedImage | None:
        """The image, or None where it is not kept."""
        try:
            with self._path(shard_sha256, member, modality).open("rb", buffering=0) as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                file.readinto(data)
        except OSError:
            return None
        return _parsed(data, self.image_size)

    def add(self, shard_sha256: str, member: Member, modality: Modality, image: ResizedImage) -> None:
        """Keep an image where there is room; a disk that fails ends the keeping, not the run."""
        channels = image.pixels.shape[2] if image.pixels.ndim == 3 else 0
        header = _HEADER.pack(_MARK, _DTYPES.index(image.pixels.dtype), channels, *image.stored_size)
        size = len(header) + image.pixels.nbytes
        if self._added_bytes + size > self.share_bytes:
            return
        self._added_bytes += size
        try:
            path = self._path(shard_sha256, member, modality)
            write_aside(path, lambda temporary: temporary.write_bytes(header + image.pixels.tobytes()))
        except ValueError as error:
            logger.warning("no more resized images are kept: %s", error)
            self.share_bytes = 0

    def _path(self, shard_sha256: str, member: Member, modality: Modality) -> Path:
        read_as = f"{member.offset}-{modality.kind}"
        if modality.kind == "depth":
            read_as += f"-{modality.scale!r}-{modality.invalid!r}"
        return self.folder / _shard_name(self.image_size, shard_sha256) / f"{read_as}.pixels"


def _shard_name(image_size: int, sha256: str) -> str:
    return f"{image_size}-{sha256}"


def _make_room(folder: Path, limit_bytes: int, wanted: set[str]) -> int:
    """Remove what is too much, never of ``wanted``; the bytes that are free then."""
    used, others = 0, []
    for shard in folder.iterdir():
        if not shard.is_dir():
            continue
        size = _clean_size(shard)
        used += size
        if shard.name in wanted:
            os.utime(shard)
        else:
            others.append((shard.stat().st_mtime_ns, size, shard))
    for _, size, shard in sorted(others):
        if used < limit_bytes:
            break
        shutil.rmtree(shard, ignore_errors=True)
        used -= size
    return max(0, limit_bytes - used)


def _clean_size(shard: Path) -> int:
    """Bytes of its images; what killed processes left goes."""
    size = 0
    for file in os.scandir(shard):
        with contextlib.suppress(FileNotFoundError):  # a temporary file gets its name at any moment
            status = file.stat()
            if file.name.startswith(".") and time.time() - status.st_mtime > ABANDONED_SECONDS:
                os.unlink(file)
            else:
                size += status.st_size
    return size


def _parsed(data: bytearray, image_size: int) -> ResizedImage | None:
    """None where the file is no whole image of that size."""
    if len(data) < _HEADER.size:
        return None
    mark, dtype_code, channels, height, width = _HEADER.unpack_from(data)
    if mark != _MARK or dtype_code >= len(_DTYPES):
        return None
    shape = (image_size, image_size, channels) if channels else (image_size, image_size)
    dtype = _DTYPES[dtype_code]
    if len(data) != _HEADER.size + dtype.itemsize * int(np.prod(shape)):
        return None
    pixels = np.frombuffer(data, dtype=dtype, offset=_HEADER.size).reshape(shape)
    return ResizedImage(pixels, (height, width))
