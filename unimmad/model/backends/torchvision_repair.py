"""Lets timm import where PyPI's torchvision, built for CUDA, stands beside a CPU torch.

There torchvision's compiled operators are absent and its import fails on the first of them. Only their schemas are
needed to import; timm's models never call them.
"""

from __future__ import annotations

import importlib
import sys

import torch

# The operators that torchvision's import registers fake kernels for (its _meta_registrations.py).
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# Operators vanish with the Library object that defined them, so it is kept for the life of the process.
_kept_library: torch.library.Library | None = None


def ensure_torchvision_imports() -> None:
    """Import torchvision, defining its missing operators first where, and only where, that import needs them."""
    global _kept_library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _kept_library is not None:
            raise
        _kept_library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _kept_library.define(schema)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
