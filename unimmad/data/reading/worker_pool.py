"""Items from worker processes, in order, with errors that stay one line."""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from multiprocessing import active_children, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from webdataset import DataPipeline

from unimmad.data.gc_pause import collector_paused
from unimmad.data.reading.parcel import KILLED, WAY_OUT, Failure, handed_over

T = TypeVar("T")
R = TypeVar("R")

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
PREFETCHED_ITEMS = 2
"""Items that each worker makes ahead."""
SEMAPHORE_FOLDER = "/dev/shm"
"""Where the C library keeps those of processes, a page each."""
SEMAPHORES_OF_WORKER, SEMAPHORES_OF_LOADER = 3, 8
LOST_WORKER_SIGN = "exited unexpectedly"
"""What torch's loader says of a worker that ended before its work was done."""


class Pipeline(DataPipeline):
    """A pipeline that gets into worker processes quickly: its stages know every sample of the data.

    They are pickled once for all workers; what is changed in them after that reaches no further worker.
    """

    def __reduce__(self) -> tuple[Callable[[bytes], Pipeline], tuple[bytes]]:
        return _pipeline, (self._pickled,)

    @cached_property
    def _pickled(self) -> bytes:
        with collector_paused():
            return pickle.dumps(self.pipeline)


def _pipeline(stages: bytes) -> Pipeline:
    with collector_paused():
        return Pipeline(*pickle.loads(stages))


def load(dataset: Dataset[Any], workers: int, preload: str, pin_memory: bool = False) -> Iterator[Any]:
    """A dataset's items; with workers, each item is made by one of them, ahead of time.

    Args:
        workers: 0 makes the items here.
        preload: the module that workers import once, in the process that they fork from.
        pin_memory: bring each item into page-locked memory by its ``pin_memory``; without a GPU nothing is done.

    Raises:
        ValueError: an item is a ``Failure``, its message; or workers can't start, or one ended too early.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=handed_over if workers else None,
        worker_init_fn=_end_with_main if workers else None,
        prefetch_factor=PREFETCHED_ITEMS if workers else None,
        multiprocessing_context=_worker_context(preload) if workers else None,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # A loader draws a seed for its workers; drawn from the global generator, it would change the run.
        generator=torch.Generator(),
    )
    for item in _received(loader):
        if isinstance(item, Failure):
            raise ValueError(item.message)
        yield item


def _received(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the loader gives.

    Raises:
        ValueError: its workers can't start, or one of them is gone.
    """
    if loader.num_workers:
        _check_room(loader.num_workers)
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)  # after multiprocessing's own, so that it runs before
    try:
        items = iter(loader)
    except (OSError, EOFError) as error:
        raise ValueError(f"loader processes can't start ({error}); {WAY_OUT}") from None
    try:
        yield from items
    except RuntimeError as error:
        if LOST_WORKER_SIGN in str(error):
            raise ValueError(f"{error}: {KILLED}; {WAY_OUT}") from None
        raise


def _kill_workers() -> None:
    """Of a loader that something still refers to when the program ends: multiprocessing would ask them to end by a
    signal that they do not get (``start_worker_server``), and wait for them for ever."""
    for worker in active_children():
        worker.kill()


def _check_room(workers: int) -> None:
    """Asked before they start: torch's loader, stopped in the middle of that, says more than one line."""
    pages = SEMAPHORES_OF_WORKER * workers + SEMAPHORES_OF_LOADER
    if not os.access(SEMAPHORE_FOLDER, os.W_OK):
        lack = "is not there or can't be written to"
    elif (buffer := os.statvfs(SEMAPHORE_FOLDER)).f_bavail < pages:
        lack = f"has {buffer.f_bavail * buffer.f_frsize // 1000} kB free; a container gets more by --shm-size"
    else:
        return
    raise ValueError(
        f"{workers} loader processes need {pages * mmap.PAGESIZE // 1000 + 1} kB of {SEMAPHORE_FOLDER} for their "
        f"semaphores, and it {lack}; or {WAY_OUT}"
    )


def start_worker_server(preload: str) -> None:
    """Begin to import what workers need, in the process that they will fork from; does not wait for it.

    The import takes seconds, which the first batch would else wait for. Signals that ask the program to stop reach
    neither that process nor its workers, though a terminal, a launcher or SLURM may send them to all of a program's:
    the main process still needs batches to end its step.
    """
    _worker_context(preload)
    # The tracker unblocks signals as it starts, so it goes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def load_each(make: Callable[[T], R], inputs: list[T], workers: int, preload: str) -> Iterator[R]:
    """``make`` of each input, in order; all three picklable.

    Raises:
        ValueError: as ``make``.
    """
    return load(_Made(make, inputs), workers, preload)


def errors_as_items(items: Iterable[T]) -> Iterator[T | Failure]:
    """The last stage of a pipeline."""
    try:
        yield from items
    except ValueError as error:
        yield Failure(str(error))


def _end_with_main(_: int) -> None:
    """However the main process ends. Torch's worker watches its parent alone: the server, which ends after it."""
    main = parent_process()
    assert main is not None

    def watch() -> None:
        main.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class _Made(Dataset[Any]):
    def __init__(self, make: Callable[[Any], Any], inputs: list[Any]) -> None:
        self.make, self.inputs = make, inputs

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(self.inputs[number])
        except ValueError as error:
            return Failure(str(error))

    def __len__(self) -> int:
        return len(self.inputs)


def _worker_context(preload: str) -> BaseContext:
    """Workers fork from a server process that imports the libraries once.

    Unlike the training process, it has no threads, process group or GPU whose state a fork would break.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context
