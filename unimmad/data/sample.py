"""What travels from the shards to the model: one sample, and a batch of them.

Dimension letters, used here and in the model:
B samples, M modalities of one sample, T tokens = (sample, modality) pairs of a batch, C = 3 colour channels,
H x W the model's image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unimmad.data.index import ModalityKind
from unimmad.data.look import Look, look_at
from unimmad.data.mask_resize import NOTHING_LOST, MaskLoss
from unimmad.data.prepare import model_input, seen_pixels
from unimmad.data.roi import Roi
from unimmad.data.views import View


@dataclass(frozen=True)
class StoredImages:
    """A sample's images in their stored size, which views are cut from.

    Letters: h x w of a view's picture.
    """

    kinds: tuple[ModalityKind, ...]
    """Of its M modalities, in slot order."""
    pixels: tuple[np.ndarray, ...]
    """What ``prepare.stored_pixels`` made of each: uint8 or float32, H x W or H x W x 3, all of one size."""
    roi: Roi | None = None
    """The region of interest of its class."""
    where: str = "sample"
    """Shard and key, for messages."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels[0].shape[:2]
        return height, width

    def seen(self, view: View) -> Tensor:
        """The model's input: float32, normalised, M x 3 x h x w."""
        images_MCHW = torch.empty(len(self.pixels), 3, *view.size)
        for pixels, kind, image_CHW in zip(self.pixels, self.kinds, images_MCHW, strict=True):
            model_input(seen_pixels(pixels, kind, view), kind, out=image_CHW)
        return images_MCHW

    def look(self, view: View) -> Look | None:
        """Where to look in them; None where everywhere. ``view``: see ``look_at``.

        Raises:
            ValueError: the region of interest does not fit the images.
        """
        return look_at(self.roi, view, lambda: self.seen(view), self.kinds, self.size, self.where)


@dataclass(frozen=True)
class Sample:
    """One decoded sample: aligned images of 1 to 4 modalities, ready for the model.

    ``class_name`` is ``DATASET/CLASS`` so that classes of two sets never collide; ``defect`` is ``good`` or the
    defect's folder name.
    """

    key: str
    dataset: str
    class_name: str
    defect: str
    anomalous: bool
    modalities: tuple[str, ...]
    """Names of the modalities present, in slot order."""
    slots: tuple[int, ...]
    """The input slot of each modality present; strictly increasing."""
    images_MCHW: Tensor
    """float32, normalised: one 3-channel image a modality."""
    mask_HW: Tensor | None
    """bool, True where anomalous; None where the set has no mask for an anomalous sample, and in training. Of the
    images' size, or where pixels are measured at their original one, of ``view.native``."""
    stored_size: tuple[int, int] = (0, 0)
    """Height and width of the images as they are stored; 0 where nobody said."""
    view: View | None = None
    """What the images show of the stored ones, and where; None where nobody said: all, stretched."""
    mask_loss: MaskLoss = NOTHING_LOST
    """What the mask lost on the way to the images' size."""
    stored: StoredImages | None = None
    """In place of ``images_MCHW``, where views are still to be cut."""
    views: int = 1
    """How many were scored of it."""
    weights_HW: Tensor | None = None
    """float32, 0 (not looked at) to 1: the class's region of interest; None where all is looked at, and in training."""
    look: Look | None = None
    """The same, laid over the stored image; None as ``weights_HW``, and where views are still to be cut."""

    @property
    def photograph(self) -> str:
        """What tells its photograph from all others."""
        return f"{self.class_name} {self.key}"


@dataclass(frozen=True)
class Batch:
    """Samples side by side; tokens (sample, modality pairs) are listed sample by sample, in slot order."""

    samples: tuple[Sample, ...]
    """The samples without their image tensors (those are in ``images_TCHW``); masks stay."""
    images_TCHW: Tensor
    """float32."""
    sample_of_token_T: Tensor
    """int64, not decreasing: which sample a token belongs to."""
    slot_of_token_T: Tensor
    """int64: the input slot of the token's modality."""
    drawn_TCHW: Tensor | None = None
    """The images with anomalies drawn onto some; None where none are asked for."""

    @property
    def size(self) -> int:
        return len(self.samples)

    @property
    def tokens_per_sample(self) -> tuple[int, ...]:
        return tuple(len(sample.slots) for sample in self.samples)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its token tensors on ``device``; masks stay where they are."""
        return replace(
            self,
            images_TCHW=self.images_TCHW.to(device, non_blocking=True),
            sample_of_token_T=self.sample_of_token_T.to(device, non_blocking=True),
            slot_of_token_T=self.slot_of_token_T.to(device, non_blocking=True),
            drawn_TCHW=None if self.drawn_TCHW is None else self.drawn_TCHW.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The batch with its token tensors in page-locked memory, from which a GPU copies while the host goes on."""
        return replace(
            self,
            images_TCHW=self.images_TCHW.pin_memory(),
            sample_of_token_T=self.sample_of_token_T.pin_memory(),
            slot_of_token_T=self.slot_of_token_T.pin_memory(),
            drawn_TCHW=None if self.drawn_TCHW is None else self.drawn_TCHW.pin_memory(),
        )


class BatchBuffer:
    """Memory for the images of one batch, taken sample by sample: ``collate`` then has nothing to copy.

    Args:
        images: how many there will be; for those beyond, new memory is made.
        image_size: their height and width.
    """

    def __init__(self, images: int, image_size: int) -> None:
        # numpy asks for huge pages, torch for none: making room for 10 x 4 images then costs 2 ms instead of 13.
        self._free_TCHW = torch.from_numpy(np.empty((images, 3, image_size, image_size), dtype=np.float32))

    def take(self, images: int) -> Tensor:
        """The next ``images`` images, not yet filled: float32, M x 3 x H x W."""
        if images > len(self._free_TCHW):
            return self._free_TCHW.new_empty(images, *self._free_TCHW.shape[1:])
        taken_MCHW, self._free_TCHW = self._free_TCHW[:images], self._free_TCHW[images:]
        return taken_MCHW


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples of any number of modalities into one batch, without padding."""
    counts = torch.tensor([len(sample.slots) for sample in samples])
    no_image = torch.empty(0)
    return Batch(
        samples=tuple(replace(sample, images_MCHW=no_image) for sample in samples),
        images_TCHW=_joined([sample.images_MCHW for sample in samples]),
        sample_of_token_T=torch.repeat_interleave(torch.arange(len(samples)), counts),
        slot_of_token_T=torch.tensor([slot for sample in samples for slot in sample.slots]),
    )


def _joined(images: Sequence[Tensor]) -> Tensor:
    """``torch.cat``; where the images follow each other in one ``BatchBuffer``, the memory that they already are."""
    first, total = images[0], sum(len(image_MCHW) for image_MCHW in images)
    end = first.data_ptr()
    for image_MCHW in images:
        same = image_MCHW.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and image_MCHW.is_contiguous() and image_MCHW.data_ptr() == end):
            return torch.cat(list(images))
        end += image_MCHW.nbytes
    return first.as_strided((total, *first.shape[1:]), first.stride())
