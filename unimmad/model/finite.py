"""Whether tensors hold finite numbers only: NaN in a weight makes every score NaN, and NaN is above no threshold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; integers never are.

    A sum reads each value once and keeps nothing beside. Where large values only add up to infinity, each is looked at.
    """
    if not tensor.is_floating_point():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch sums no type of 8 bits
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def check_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Look at each of ``tensors``; ``origin`` says where they come from.

    Raises:
        ValueError: one has values that are NaN or infinite; names it.
    """
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise ValueError(f"{origin}: {name} holds values that are NaN or infinite; use other weights")
