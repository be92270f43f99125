"""Features of a frozen teacher on a node's disk, so that a training image goes through it once and not once an epoch.

    CACHE/features/
      FINGERPRINT/           one teacher's weights, one image size and precision, one state of the data
        NN/DIGEST.safetensors  one image's features; written aside and renamed

Each image goes through the teacher alone, and what comes of it is kept: so no number depends on what is kept already,
nor on the batch that an image was in when it was first seen.

Letters: T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unimmad.data.sample import Batch
from unimmad.model.method import Method

Features = Callable[[Tensor], list[Tensor]]
"""Images [T, C, H, W] to tensors whose first dimension is T."""


class FeatureCache:
    """The cache as one process sees it.

    Args:
        folder: of one fingerprint.
        limit_bytes: what this process may add to what is there, and what is there counts.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """
        Raises:
            ValueError: the folder can't be made or read.
        """
        self.folder = folder
        self._names: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._room = limit_bytes - sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        except OSError as error:
            raise ValueError(
                f"the cache of features {folder} can't be used ({error.strerror or error}); choose another folder with "
                "data.cache_folder, or set data.feature_cache_gb to 0"
            ) from None

    def attach(self, method: Method) -> None:
        """From now on ``method`` takes its teacher's features from here, for the batch of ``of``.

        Raises:
            ValueError: it has no frozen features.
        """
        place = method.frozen_features()
        if place is None:
            raise ValueError(
                f"data.feature_cache_gb: {type(method).__name__} has no features that training leaves as they are; "
                "set it to 0"
            )
        owner, name = place
        setattr(owner, name, CachedFeatures(self, getattr(owner, name)))

    @contextlib.contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """What runs inside is the forward pass of this batch."""
        self._names = [
            hashlib.sha256("\0".join((sample.class_name, sample.key, modality)).encode()).hexdigest()[:40]
            for sample in batch.samples
            for modality in sample.modalities
        ]
        yield
        self._names = []

    def features(self, compute: Features, images_TCHW: Tensor) -> list[Tensor]:
        """Each image's, kept or made, on the images' device."""
        if not self._names:  # of other samples than training's
            return compute(images_TCHW)
        assert len(self._names) == len(images_TCHW), "the forward pass is not that of the batch"
        of_images = [
            self._kept(name, images_TCHW.device) or self._made(name, compute, images_TCHW[place : place + 1])
            for place, name in enumerate(self._names)
        ]
        return [torch.cat(parts) for parts in zip(*of_images, strict=True)]

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def _kept(self, name: str, device: torch.device) -> list[Tensor] | None:
        """None where it is not there, or damaged."""
        try:
            tensors = load_file(self._path(name))
            return [tensors[str(number)].to(device) for number in range(len(tensors))]
        except (OSError, SafetensorError, KeyError):
            return None

    def _made(self, name: str, compute: Features, image_1CHW: Tensor) -> list[Tensor]:
        features = compute(image_1CHW)
        size = sum(tensor.nbytes for tensor in features)
        if size <= self._room:
            with contextlib.suppress(OSError):  # a full disk keeps no more, and the training goes on
                self._save(self._path(name), features)
                self._room -= size
        return features

    def _save(self, path: Path, features: Sequence[Tensor]) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({str(n): tensor.detach().cpu().contiguous() for n, tensor in enumerate(features)}, temporary)
            os.replace(temporary, path)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        finally:
            temporary.unlink(missing_ok=True)


class CachedFeatures:
    """Stands in the place of what computes the features."""

    def __init__(self, cache: FeatureCache, compute: Features) -> None:
        self._cache = cache
        self._compute = compute

    def __call__(self, images_TCHW: Tensor) -> list[Tensor]:
        return self._cache.features(self._compute, images_TCHW)


def fingerprint(teacher: nn.Module, *facts: str) -> str:
    """Of a teacher's weights and of what else its features depend on: such as data, image size, precision."""
    digest = hashlib.sha256("\n".join((torch.__version__, *facts)).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()[:24]
