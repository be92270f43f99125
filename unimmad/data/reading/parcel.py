"""An item on its way from a worker process to the main one, in memory that belongs to no folder.

Left to itself torch puts each tensor into ``/dev/shm``, from a thread whose errors nobody hears of: where there is no
room (containers have 64 MB) the item is lost. Anonymous memory (``memfd_create``) ends only where the machine's, or the
container's, does; and the worker fills it itself, so what goes wrong becomes the item.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Of each tensor's first byte, as torch has it."""
KILLED = "the process was killed, most often for want of memory, or too many files are open (ulimit -n)"
WAY_OUT = "use fewer workers, a smaller batch, or 0 workers, which read in the main process"


@dataclass(frozen=True)
class Failure:
    """Takes the place of an item that could not be made or handed over.

    An exception that leaves a worker would arrive with a traceback in its message.
    """

    message: str


class Parcel:
    """Made of an item in a worker; arrives in the main process as that item, or as a ``Failure``.

    The message has some hundred bytes, however large the item is: the pipe, which all workers share, takes them at
    once, so a worker that is killed leaves no part of one there, for whose rest the main process would wait forever.
    """

    def __init__(self, item: object) -> None:
        """Copies the item; raises an OSError where there is no memory for it."""
        head, arrays = io.BytesIO(), list[pickle.PickleBuffer]()
        _TensorsAsArrays(head, protocol=5, buffer_callback=arrays.append).dump(item)
        parts = [head.getbuffer(), *(array.raw() for array in arrays)]
        self.lengths = [len(part) for part in parts]
        with open(os.memfd_create("batch"), "wb") as file:
            for part in parts:
                file.write(part)
                file.write(bytes(-len(part) % ALIGNMENT))
            file.flush()
            self.file = DupFd(file.fileno())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, list[int]]]:
        # The worker may end once it has sent its last message, so what arrives is fetched at once.
        return _arrived, (self.file, self.lengths)


def handed_over(item: object) -> Parcel | Failure:
    """What a worker sends for an item."""
    try:
        return Parcel(item)
    except OSError as error:
        return Failure(f"a loader process can't hand over what it read ({error}); {WAY_OUT}")


def _arrived(file: Any, lengths: list[int]) -> Any:
    """The item whose bytes the worker wrote to ``file``, a ``DupFd``: its tensors are that memory, which goes with the
    last of them."""
    try:
        fetched = file.detach()
        try:
            memory = memoryview(mmap(fetched, 0))
        finally:
            os.close(fetched)
    except (OSError, EOFError, RuntimeError) as error:
        return Failure(f"what a loader process read is gone ({error!r}): {KILLED}; {WAY_OUT}")
    begins = accumulate((length + -length % ALIGNMENT for length in lengths), initial=0)
    head, *arrays = [memory[begin : begin + length] for begin, length in zip(begins, lengths, strict=False)]
    return pickle.loads(head, buffers=arrays)


class _TensorsAsArrays(pickle.Pickler):
    """NumPy's arrays can leave their bytes out of the pickle, torch's tensors can't."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor):
            return _tensor, (value.numpy(),)
        return NotImplemented


_tensor: Callable[..., Tensor] = torch.from_numpy
