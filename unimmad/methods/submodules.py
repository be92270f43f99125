"""Names of tensors in a module and in its parts."""

from __future__ import annotations

from collections.abc import Mapping


def in_submodule(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a submodule's tensors, by their names in it."""
    prefix = f"{name}."
    return {full.removeprefix(prefix): shape for full, shape in shapes.items() if full.startswith(prefix)}
