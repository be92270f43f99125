"""What a GPU would have to be waited for: operations that need a tensor's values on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
}
"""A value for the host, or a result whose size depends on values."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


COPYING = ("cpu", "numpy", "tolist", "__array__")
"""Methods that need no operation on a processor, since nothing is copied. ``to`` is not told apart there."""


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The names of what reads within it, backward passes included."""
    names: list[str] = []
    with ExitStack() as stack:
        for name in COPYING:
            stack.enter_context(patch.object(Tensor, name, _noted(name, names)))
        stack.enter_context(_Operations(names))
        yield names


def _noted(name: str, names: list[str]) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        names.append(name)
        return method(*args, **kwargs)

    return noted


class _Operations(TorchDispatchMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._reads(func.overloadpacket, args, kwargs):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **kwargs)

    @staticmethod
    def _reads(operation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if operation in READING:
            return True
        if operation is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        return operation in INDEXING and any(_is_mask(index) for index in args[1])


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
