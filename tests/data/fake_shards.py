"""Stands in for a shard folder, and reads it as training does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_set import CorruptSampleError
from unimmad.data.reading.skipping import OnError, SkipLog
from unimmad.data.reading.stream import training_batches
from unimmad.data.sample import Batch, Sample

SIZE = 4


COUNTS = {"a/x": 5, "a/y": 3, "b/z": 8}


@dataclass(frozen=True)
class FakeRef:
    class_name: str
    number: int

    @property
    def entry(self) -> Any:
        dataset, name = self.class_name.split("/")
        return SimpleNamespace(key=f"{name}_{self.number}", dataset=dataset, class_name=name, images={"rgb": None})


class FakeShards:
    """Stands in for a ShardSet: one file a sample, so that a test can take one away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[FakeRef] = []
        """Every read by this process."""
        for refs in self.classes("train").values():
            for ref in refs:
                np.save(self._path(ref), np.full((SIZE, SIZE), ref.number, dtype=np.float32))

    def classes(self, split: str) -> dict[str, tuple[FakeRef, ...]]:
        if split != "train":
            return {}
        return {name: tuple(FakeRef(name, i) for i in range(count)) for name, count in COUNTS.items()}

    def read(self, ref: FakeRef, image_size: int, mask_resize: str = "nearest", **_: Any) -> Sample:
        self.asked.append(ref)
        if not self._path(ref).is_file():
            raise ValueError(f"{self._path(ref).name} is gone")
        if not self._path(ref).stat().st_size:
            raise CorruptSampleError(f"{ref.class_name}.tar", f"{ref.class_name}.tar: {ref.entry.key}.png: is broken")
        time.sleep(0.001 * ref.number)  # so that workers finish at different times
        image_HW = torch.from_numpy(np.load(self._path(ref), allow_pickle=False))
        return Sample(
            key=ref.entry.key,
            dataset=ref.entry.dataset,
            class_name=ref.class_name,
            defect="good",
            anomalous=False,
            modalities=("rgb",),
            slots=(0,),
            images_MCHW=image_HW.expand(1, 3, image_size, image_size),
            mask_HW=torch.full((image_size, image_size), mask_resize == "bilinear"),
        )

    def spoil(self, *keys: str) -> None:
        """Make samples corrupt."""
        for key in keys:
            (self.folder / f"{key}.npy").write_bytes(b"")

    def _path(self, ref: FakeRef) -> Path:
        return self.folder / f"{ref.entry.key}.npy"


def make_order(shards: Any, batch: int = 4) -> TrainingOrder[Any]:
    return TrainingOrder(shards.classes("train"), lambda ref: ref.class_name, seed=1, batch=batch)


def train(
    shards: Any,
    start: int,
    end: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    batch: int = 4,
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
) -> Any:
    return training_batches(
        shards,
        make_order(shards, batch),
        image_size=SIZE,
        rank=rank,
        world_size=world_size,
        workers=workers,
        start_step=start,
        end_step=end,
        on_error=on_error,
        skip_log=skip_log,
    )


def keys(batch: Batch) -> list[str]:
    return [sample.key for sample in batch.samples]


def listed(stream: Iterator[tuple[int, Batch]]) -> list[tuple[int, list[str]]]:
    return [(step, keys(batch)) for step, batch in stream]


def expected_list(shards: Any, start: int, end: int, batch: int = 4) -> list[tuple[int, list[str]]]:
    order = make_order(shards, batch)
    return [(step, [ref.entry.key for ref in order.at(step)]) for step in range(start, end)]
