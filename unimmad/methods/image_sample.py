"""A random choice of training images (of one modality each), the same whatever the order and the ranks they come on.

Letters: N images, C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor

from unimmad.methods.coreset import hash_of_key, random_order, view_key
from unimmad.methods.patch_collection import BankName
from unimmad.model.method import Gather


class KeptImage(NamedTuple):
    """One image and what it is known by; ordered by the random number."""

    number: int
    """Random; those with the smallest are kept."""
    bank: BankName
    key: str
    """Of its photograph."""
    image_CHW: Tensor
    """Normalised, float32, on the CPU."""


class ImageSample:
    """What one process keeps.

    Args:
        limit: images at most.
        seed: of the random numbers.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.seed = seed
        self._kept: list[KeptImage] = []

    def add(self, bank: BankName, key: str, image_CHW: Tensor, view: int = 0) -> None:
        """Take in one view of the photograph ``key``."""
        number = int(random_order(hash_of_key(f"{bank.slot} {view_key(key, view)}"), 1, self.seed))
        if len(self._kept) < self.limit or number < self._kept[-1].number:
            self._kept.append(KeptImage(number, bank, key, image_CHW.to("cpu", torch.float32, copy=True)))
            self._kept = sorted(self._kept, key=_place)[: self.limit]

    def gathered(self, gather: Gather) -> list[KeptImage]:
        """Those of all processes in the order of their numbers, on rank 0 (elsewhere nothing); here they are forgotten.
        Collective. All images are of one shape."""
        kept, self._kept = self._kept, []
        lines = "".join(json.dumps([one.number, one.bank, one.key]) + "\n" for one in kept)
        of_all = gather(
            {
                "lines": torch.tensor(list(lines.encode()), dtype=torch.uint8),
                "shapes": torch.tensor([one.image_CHW.shape for one in kept], dtype=torch.long).reshape(-1, 3),
                "values": torch.cat([torch.empty(0), *(one.image_CHW.flatten() for one in kept)]),
            }
        )
        if not of_all or not len(of_all["shapes"]):
            return []
        facts = [json.loads(line) for line in bytes(of_all["lines"].tolist()).decode().splitlines()]
        images_NCHW = of_all["values"].view(-1, *of_all["shapes"][0].tolist())
        images = [
            KeptImage(number, BankName(*bank), key, image_CHW)
            for (number, bank, key), image_CHW in zip(facts, images_NCHW, strict=True)
        ]
        return sorted(images, key=_place)[: self.limit]


def _place(kept: KeptImage) -> tuple[int, BankName, str]:
    return kept.number, kept.bank, kept.key
