"""Sees in what types convolutions and matrix products compute."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = ("convolution", "convolution_backward")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class DtypeWatch(TorchDispatchMode):
    """Counts the dtypes of what convolutions and matrix products are given, by operation, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: defaultdict[str, Counter[torch.dtype]] = defaultdict(Counter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in (*CONVOLUTIONS, *PRODUCTS):
            self.seen[name].update({arg.dtype for arg in args if isinstance(arg, Tensor)})
        return func(*args, **(kwargs or {}))
