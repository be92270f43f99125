"""Resized images kept on a node's disk, so that a training image is decoded once and not once an epoch.

    CACHE/resized/
      SIZE-VERSIONS-SHARD_SHA256/  one shard's images at one size, as these versions of the libraries make them
        OFFSET-KIND[...].pixels    one image; written aside and renamed
      .taken                       bytes that are kept, and that processes have taken for what they will keep
      .lock                        held while room is made or taken

What is kept is what ``prepare.resized_pixels`` gave, value by value; the rest of the preparation is cheap. Content
names it (the shard's sha256, the place in it, how the modality is read), so runs share it. A starting run makes room,
the longest unused shards of other data first; then processes take room block by block, until none is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock

from unimmad import __version__
from unimmad.data.index import Index, Member, Modality
from unimmad.data.reading.shard_cache import ABANDONED_SECONDS
from unimmad.data.views import Aspect
from unimmad.serialization.atomic_write import replace_whole, time_of

logger = logging.getLogger(__name__)

GB = 10**9
BLOCK_BYTES = 16 * 2**20
"""Room that a process takes at once: some hundred images, so that processes seldom wait for each other."""

_HEADER = struct.Struct("<4sBBxxII")
"""Mark, dtype, channels (0: H x W), height and width before resizing; 16 bytes, so that what follows is aligned."""
_MARK = b"UMR1"
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))
_USUAL_BYTES = {"rgb": 3, "gray": 1, "depth": 4}
"""Of a pixel; images that are not of 8 bit take four times as much as these (RGB, gray)."""
_RULE = 3
"""Counts what images are made of: ``depth_range`` is new in 2; orientation tags, 16-bit colours and ranges in 3."""
_VERSIONS = hashlib.sha256(f"{__version__} {PIL.__version__} {torch.__version__} {_RULE}".encode()).hexdigest()[:8]
"""Other versions may resize otherwise in the last bit."""


@dataclass(frozen=True)
class ResizedImage:
    """An image as ``prepare.resized_pixels`` gives it."""

    pixels: np.ndarray
    """uint8 or float32, H x W or H x W x 3."""
    stored_size: tuple[int, int]
    """Height and width before resizing."""


class ResizedCache:
    """The cache as one process sees it. Picklable: a copy takes room of its own.

    Args:
        cache_folder: of the node; the images lie in ``resized`` there.
        image_size: side of every image.
        limit_bytes: what all images there may take.
        aspect: how they became squares.
    """

    def __init__(self, cache_folder: Path, image_size: int, limit_bytes: int, aspect: Aspect = "stretch") -> None:
        self.folder = cache_folder / "resized"
        self.image_size = image_size
        self.aspect = aspect
        self.limit_bytes = limit_bytes
        self._room = 0
        self._full = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_room": 0}

    def make_room(self, expected: Mapping[str, int]) -> int:
        """What a run does first, in one process of each node: count again, and remove what is too much.

        The longest unused shards of other data go first, and some of ``expected`` only if the bound was larger once.

        Args:
            expected: bytes that the images of each shard (sha256) will take; see ``expected_bytes``.

        Returns:
            bytes that are kept then.

        Raises:
            ValueError: the folder can't be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                kept = _make_room(
                    self.folder, self.limit_bytes, {self._name(sha256): n for sha256, n in expected.items()}
                )
                self._write_taken(kept)
        except OSError as error:
            raise ValueError(
                f"the cache of resized images {self.folder} can't be used ({error.strerror or error}); "
                "choose another folder with data.cache_folder, or set data.resized_cache_gb to 0"
            ) from None
        return kept

    def holds(self, image_size: int, aspect: Aspect) -> bool:
        """Whether images that are made in this way are kept here."""
        return (image_size, aspect) == (self.image_size, self.aspect)

    def get(self, shard_sha256: str, member: Member, modality: Modality) -> ResizedImage | None:
        """The image, or None where it is not kept."""
        try:
            with self._path(shard_sha256, member, modality).open("rb", buffering=0) as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                if file.readinto(data) != len(data):
                    return None
        except OSError:
            return None
        return _parsed(data, self.image_size)

    def add(self, shard_sha256: str, member: Member, modality: Modality, image: ResizedImage) -> None:
        """Keep an image where there is room; a disk that fails ends the keeping, not the run."""
        channels = image.pixels.shape[2] if image.pixels.ndim == 3 else 0
        header = _HEADER.pack(_MARK, _DTYPES.index(image.pixels.dtype), channels, *image.stored_size)
        size = len(header) + image.pixels.nbytes
        try:
            if not self._has_room(size):
                return
            path = self._path(shard_sha256, member, modality)
            replace_whole(path, lambda temporary: temporary.write_bytes(header + image.pixels.tobytes()))
            self._room -= size
        except FileNotFoundError:
            pass  # a run that starts makes room at this moment, and removed the shard's folder
        except OSError as error:
            logger.warning("no more resized images are kept in %s: %s", self.folder, error.strerror or error)
            self._room, self._full = 0, True

    def _has_room(self, size: int) -> bool:
        if size > self._room and not self._full:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                taken = self._taken()
                block = min(max(BLOCK_BYTES, size), self.limit_bytes - taken)
                self._full = self._room + block < size
                if not self._full:
                    self._write_taken(taken + block)
                    self._room += block
        return size <= self._room

    def _taken(self) -> int:
        try:
            return int((self.folder / ".taken").read_text())
        except FileNotFoundError:
            return 0
        except ValueError:
            return self.limit_bytes  # not ours; the next run counts again

    def _write_taken(self, taken: int) -> None:
        replace_whole(self.folder / ".taken", lambda temporary: temporary.write_text(str(taken)))

    def _path(self, shard_sha256: str, member: Member, modality: Modality) -> Path:
        read_as = f"{member.offset}-{modality.kind}"
        if modality.kind == "depth":
            read_as += f"-{modality.scale!r}-{modality.invalid!r}"
        if modality.unit or modality.disparity or modality.ranges:
            meaning = modality.model_dump_json(include={"unit", "disparity", "ranges"})
            read_as += f"-{hashlib.sha256(meaning.encode()).hexdigest()[:16]}"
        return self.folder / self._name(shard_sha256) / f"{read_as}.pixels"

    def _name(self, shard_sha256: str) -> str:
        made_so = "" if self.aspect == "stretch" else f"-{self.aspect}"
        return f"{self.image_size}{made_so}-{_VERSIONS}-{shard_sha256}"


def expected_bytes(indexes: Iterable[Index], image_size: int) -> dict[str, int]:
    """What the training images of each shard (sha256) will take if they are of 8 bit, or depth."""
    sizes: Counter[str] = Counter()
    for index in indexes:
        kinds = {name: {m.name: m.kind for m in entry.modalities} for name, entry in index.datasets.items()}
        for sample in index.samples:
            if sample.split == "train":
                bytes_a_pixel = sum(_USUAL_BYTES[kinds[sample.dataset][name]] for name in sample.images)
                sizes[index.shards[sample.shard].sha256] += (
                    bytes_a_pixel * image_size**2 + len(sample.images) * _HEADER.size
                )
    return dict(sizes)


def _make_room(folder: Path, limit_bytes: int, expected: Mapping[str, int]) -> int:
    """Bytes that are kept then; ``expected`` by the shard's folder."""
    now = time_of(folder)
    sizes = {shard: _clean_size(shard, now) for shard in folder.iterdir() if shard.is_dir()}
    oldest_first = sorted(sizes, key=lambda shard: shard.stat().st_mtime_ns)
    kept = sum(sizes.values())
    coming = sum(max(0, size - sizes.get(folder / name, 0)) for name, size in expected.items())
    for shard in oldest_first:
        if shard.name not in expected and kept + coming > limit_bytes:
            shutil.rmtree(shard, ignore_errors=True)
            kept -= sizes[shard]
    for shard in oldest_first:
        if shard.name in expected:
            if kept > limit_bytes:
                shutil.rmtree(shard, ignore_errors=True)
                kept -= sizes[shard]
            else:
                os.utime(shard)
    return kept


def _clean_size(shard: Path, now: float) -> int:
    """Bytes of its images; what killed processes left goes. ``now``: by the file system's clock."""
    size = 0
    for file in os.scandir(shard):
        with contextlib.suppress(FileNotFoundError):  # a temporary file gets its name at any moment
            status = file.stat()
            if file.name.startswith(".") and now - status.st_mtime > ABANDONED_SECONDS:
                os.unlink(file)
            else:
                size += status.st_size
    return size


def _parsed(data: bytearray, image_size: int) -> ResizedImage | None:
    """None where the file is not a whole image of that size."""
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
