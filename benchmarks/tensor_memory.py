"""The memory that tensors take; on fake ones, which have sizes but no values, without taking it.

Counted is every tensor's storage, from the operation that makes it until nothing holds it. What operations take for
themselves while they run (workspaces) and what an allocator rounds up or leaves between is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unimmad.model.backends.private_torch import TorchDispatchMode, storage_address, tree_leaves


class StorageWatch(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, views once; tensors on ``meta`` are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at once."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage_address(storage)
        if address in self._alive:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._alive[address]
            self.current -= size

        self._alive[address] = weakref.ref(storage, gone)
        self.current += size
        self.peak = max(self.peak, self.current)
