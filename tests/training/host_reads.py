"""What a GPU would have to be waited for: operations that need a tensor's values on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
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


COPYING = {Tensor.cpu, Tensor.numpy, Tensor.tolist}
"""On a processor these need no operation, since nothing is copied."""


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The names of what reads within it, backward passes included."""
    names: list[str] = []
    with _Operations(names), _Methods(names):
        yield names


class _Methods(TorchFunctionMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in COPYING:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


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
