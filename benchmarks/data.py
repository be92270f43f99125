"""The training stream against decoding alone and against a plain PyTorch Dataset over the same files.

The stream is shown as it is by default, and with resized images kept (``data.resized_cache_gb``) from a first epoch.

Every contestant makes the model's input of the same samples in the same order. They take turns, round by round, and
the median counts. Samples a second and core are samples over CPU seconds of one process on one thread, so that other
work on the machine disturbs little; what waits (the first batch, loader processes) is measured by the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.members import EncodedImage, source_files
from unimmad.data.decode import decode_image
from unimmad.data.prepare import prepare
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.resized_cache import ResizedCache
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import training_batches
from unimmad.data.synthetic.default_set import ensure_synthetic_shards
from unimmad.report.table import Table

HELP = "what reading training data costs, against decoding alone and a plain Dataset"
MEMORY_POINTS = (0.1, 0.5, 1.0)
"""Shares of the samples at which memory is looked at."""
MEMORY_IMAGE_SIZE = 32
PAGE = os.sysconf("SC_PAGE_SIZE")

RESIZED_BYTES = 10**10
"""More than any of these measurements keeps; the folder goes with its end."""

OURS = "the stream, shards opened again"
STREAM, KEPT = "the stream", "the stream, resized images kept"

Contestant = Callable[[], Iterator[object]]
"""Makes the same batches again at each call."""


@dataclass(frozen=True)
class Task:
    """What every contestant reads: the first ``steps`` batches of a training order."""

    shards: ShardSet
    order: TrainingOrder[SampleRef]
    image_size: int
    steps: int

    @classmethod
    def of(cls, data: Sequence[Path], batch: int, image_size: int, steps: int, resized_in: Path | None = None) -> Task:
        """
        Args:
            resized_in: where resized images are kept; None: nowhere.

        Raises:
            ValueError: no shards there, or none to train on.
        """
        shards = ShardSet.open(data)
        if resized_in is not None:
            shards.resized = ResizedCache(resized_in, image_size, RESIZED_BYTES)
        order = TrainingOrder(shards.classes("train"), lambda ref: (ref.folder, ref.entry.shard), seed=0, batch=batch)
        return cls(shards, order, image_size, steps)

    @property
    def refs(self) -> list[SampleRef]:
        return [ref for step in range(self.steps) for ref in self.order.at(step)]

    def streamed(self, workers: int = 0) -> Iterator[Tensor]:
        """Ours."""
        batches = training_batches(
            self.shards,
            self.order,
            image_size=self.image_size,
            rank=0,
            world_size=1,
            workers=workers,
            start_step=0,
            end_step=self.steps,
        )
        return (batch.images_TCHW for _, batch in batches)


class PlainDataset(Dataset[Tensor]):
    """The usual way: a list of files, each opened, decoded and transformed when its turn comes.

    Args:
        samples: each one's files.
        image_size: side of the result.
    """

    def __init__(self, samples: Sequence[Sequence[EncodedImage]], image_size: int) -> None:
        self.samples = samples
        self.image_size = image_size

    def __getitem__(self, number: int) -> Tensor:
        """float32, M x 3 x H x W."""
        return torch.stack([_prepared(file, file.path.read_bytes(), self.image_size) for file in self.samples[number]])

    def __len__(self) -> int:
        return len(self.samples)

    def loader(self, batch: int, workers: int = 0) -> DataLoader[Tensor]:
        return DataLoader(self, batch_size=batch, num_workers=workers, collate_fn=torch.cat)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR", help="shard folders (default: the synthetic set)"
    )
    parser.add_argument("--image-size", type=int, default=256, help="height and width (default: 256)")
    parser.add_argument("--batch", type=int, default=10, help="samples of a batch (default: 10)")
    parser.add_argument("--steps", type=int, default=20, help="batches that each contestant makes in a round")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each contestant, of which the median counts (default: 5)"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader processes, where they are measured")
    parser.add_argument(
        "--memory-samples", type=int, default=0, metavar="N", help="also read N samples and watch the process's memory"
    )


def run(arguments: argparse.Namespace) -> str:
    """Measure and give the table.

    Raises:
        ValueError: no local shards, or a number that is too small.
    """
    numbers = (arguments.image_size, arguments.batch, arguments.steps - 1, arguments.rounds, arguments.workers)
    if min(numbers) < 1:
        raise ValueError("give 2 or more --steps, and 1 or more of --image-size, --batch, --rounds and --workers")
    torch.set_num_threads(1)
    data = arguments.data or [ensure_synthetic_shards()]
    task = Task.of(data, arguments.batch, arguments.image_size, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        plain = PlainDataset(source_files(task.shards, task.refs, Path(folder, "files")), task.image_size)
        kept = Task.of(data, arguments.batch, arguments.image_size, arguments.steps, Path(folder))
        rates = _rates_table(task, contestants(task, kept, plain), arguments.rounds)
        lines = [rates.to_markdown(), *_waiting_table(data, task, plain, arguments)]
    if arguments.memory_samples:
        lines += ["", _memory_line(data, arguments.memory_samples)]
    return "\n".join(lines)


def contestants(task: Task, kept: Task, plain: PlainDataset) -> dict[str, Contestant]:
    """All in one process; ``kept`` is ``task`` with resized images kept.

    The first two have the files' bytes in memory and make no batches' tensors again.
    """
    encoded = [[(file, file.path.read_bytes()) for file in files] for files in plain.samples]
    largest = max(len(files) for files in encoded)
    room_MCHW = torch.empty(largest, 3, task.image_size, task.image_size)

    def decoded() -> Iterator[object]:
        for files in encoded:
            yield [decode_image(data, file.path.suffix, file.path.name) for file, data in files]

    def transformed() -> Iterator[object]:
        for files in encoded:
            for (file, data), out_CHW in zip(files, room_MCHW, strict=False):
                _prepared(file, data, task.image_size, out_CHW)
            yield room_MCHW[: len(files)]

    return {
        "decoding alone": decoded,
        "decoding, resizing, normalising alone": transformed,
        "plain Dataset over the files": lambda: iter(plain.loader(task.order.batch)),
        STREAM: task.streamed,
        KEPT: kept.streamed,
    }


def _prepared(file: EncodedImage, data: bytes, image_size: int, out: Tensor | None = None) -> Tensor:
    array = decode_image(data, file.path.suffix, file.path.name)
    return prepare(array, file.modality, image_size, file.path.name, out)


def _rates_table(task: Task, racing: dict[str, Contestant], rounds: int) -> Table:
    samples = task.steps * task.order.batch
    rates: dict[str, list[float]] = {name: [] for name in racing}
    for number in range(rounds + 1):
        for name, make in racing.items():
            rate = samples / _cpu_seconds(make)
            if number:  # the first round warms the page cache, and keeps what is to be kept
                rates[name].append(rate)

    def ratio(ours: str, name: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(rates[ours], rates[name], strict=True))

    rows = [
        (name, f"{statistics.median(found):.0f}", f"{ratio(STREAM, name):.2f}", f"{ratio(KEPT, name):.2f}")
        for name, found in rates.items()
    ]
    return Table(("", "samples/s a core", f"{STREAM} is", f"{KEPT}, is"), rows)


def _cpu_seconds(make: Contestant) -> float:
    start = time.process_time()
    deque(make(), maxlen=0)
    return time.process_time() - start


def _waiting_table(data: Sequence[Path], task: Task, plain: PlainDataset, arguments: argparse.Namespace) -> list[str]:
    """By the clock: until the first batch, and the rate after it."""
    workers = arguments.workers

    def ours() -> Iterator[object]:
        return Task.of(data, arguments.batch, task.image_size, task.steps).streamed(workers)

    racing: dict[str, Contestant] = {
        "plain Dataset over the files": lambda: iter(plain.loader(task.order.batch, workers)),
        OURS: ours,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in racing}
    for _ in range(arguments.rounds):
        for name, make in racing.items():
            times[name].append(_first_and_rest(make))
    samples = (task.steps - 1) * task.order.batch
    rows = []
    for name, found in times.items():
        first, rest = (statistics.median(values) for values in zip(*found, strict=True))
        rows.append((name, f"{first:.2f}", f"{samples / rest:.0f}"))
    table = Table((f"{workers} loader processes", "first batch, s", "then samples/s"), rows)
    started = f"the very first time, while the loader processes' server starts: {times[OURS][0][0]:.2f} s"
    return [table.to_markdown(), started, "", f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"]


def _first_and_rest(make: Contestant) -> tuple[float, float]:
    start = time.perf_counter()
    batches = make()
    next(batches)
    first = time.perf_counter()
    deque(batches, maxlen=0)
    return first - start, time.perf_counter() - first


def _memory_line(data: Sequence[Path], samples: int) -> str:
    """Small images: what grows with the number of samples read does not depend on their size."""
    batch = 10
    batches = Task.of(data, batch, MEMORY_IMAGE_SIZE, samples // batch).streamed()
    done, found = 0, []
    for share in MEMORY_POINTS:
        steps = int(share * samples / batch) - done
        deque(islice(batches, steps), maxlen=0)
        done += steps
        found.append(f"{done * batch} samples: {_resident_bytes() / 2**20:.0f} MiB")
    return "memory of the process after " + ", ".join(found)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
