"""Finds an output folder that each node has for itself, before training writes half a checkpoint on each."""

from __future__ import annotations

import time
from pathlib import Path

from unimmad.parallel.world import World
from unimmad.ranks.errors import SharedError
from unimmad.serialization.atomic_write import write_text_aside

PATIENCE_S = 30.0
"""How long a network file system may take to show what another node wrote."""


def check_shared(probe: Path, world: World, nodes: list[str]) -> None:
    """Rank 0 writes ``probe`` and every rank looks for it. Collective.

    Raises:
        ValueError: rank 0 can't write it, or some node does not see it; every rank raises it.
    """
    world.on_main(lambda: write_text_aside(probe, ""))
    seen = world.ranks.gather(_appears(probe))
    if world.is_main:
        probe.unlink(missing_ok=True)
    blind = sorted({node for node, sees in zip(nodes, seen, strict=True) if not sees})
    if blind:
        problem = (
            f"the output folder is not shared: {probe.parent}, written by {nodes[0]}, is another one on "
            f"{', '.join(blind)}; choose --output-dir on a file system that all nodes mount"
        )
        raise SharedError.of_all(problem, world.size)


def _appears(probe: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not probe.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
