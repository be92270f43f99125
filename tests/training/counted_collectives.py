"""Which collectives run, and whose they are."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_OWNERS = {"deepspeed", "unimmad"}
_NAMES = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "alltoall_base_": "all_to_all",
}


@contextmanager
def counted_collectives() -> Iterator[Counter[str]]:
    """How often each runs within it, backward passes included.

    Counted by "FILE PASS KIND", such as "batchnorm backward all_reduce", where FILE of this project asks for it, and by
    "DeepSpeed KIND".
    """
    counts: Counter[str] = Counter()
    with _Operations(counts):
        yield counts


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            self.counts[f"{_asking()} {_NAMES.get(name, name)}"] += 1
        return func(*args, **(kwargs or {}))


def _asking() -> str:
    """The innermost caller that is DeepSpeed's, or this project's with the pass that it is part of."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not _OWNERS & set(Path(frame.f_code.co_filename).parts):
        frame = frame.f_back
    if frame is None:
        return "others"
    path = Path(frame.f_code.co_filename)
    if "deepspeed" in path.parts:
        return "DeepSpeed"
    while frame is not None and frame.f_code.co_name != "backward":
        frame = frame.f_back
    return f"{path.stem} {'backward' if frame else 'forward'}"
