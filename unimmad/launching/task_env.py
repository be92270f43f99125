"""Where a task of a job runs: whether ranks lie on nodes as expert parallelism wants them, and whether all see one
output folder, before training writes half a checkpoint on each node.
"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment

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


FIRST_PORT, PORTS = 20000, 12000
"""Below the range from which systems hand out ports by themselves."""


@dataclass(frozen=True)
class Place:
    """One task among a job's tasks."""

    cluster: str
    """``slurm`` or ``local``."""
    job_id: str
    """``1234``, or ``1234_5`` in an array."""
    rank: int
    size: int
    local_rank: int
    ranks_here: int
    node: str
    first_node: str
    restarts: int
    """How often this job has been started again."""

    @classmethod
    def of_this_task(cls, starts: int) -> Place:
        """By the environment that SLURM or submitit's local controller set.

        Args:
            starts: how often the job began before, where there is no SLURM to count.
        """
        environment = JobEnvironment()
        local = environment.cluster == "local"
        return cls(
            cluster=environment.cluster,
            job_id=environment.job_id,
            rank=environment.global_rank,
            size=environment.num_tasks,
            local_rank=environment.local_rank,
            ranks_here=environment.num_tasks // environment.num_nodes,
            node=os.environ.get("SLURMD_NODENAME", environment.hostname),
            first_node="127.0.0.1" if local else environment.hostnames[0],
            restarts=starts if local else int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    @property
    def port(self) -> int:
        """Of the rendezvous: another one for each job and each of its starts."""
        return FIRST_PORT + zlib.crc32(f"{self.job_id}/{self.restarts}".encode()) % PORTS

    def export(self) -> None:
        """Tell torch.distributed, by the variables it reads."""
        os.environ.update(
            {
                "MASTER_ADDR": self.first_node,
                "MASTER_PORT": str(self.port),
                "RANK": str(self.rank),
                "WORLD_SIZE": str(self.size),
                "LOCAL_RANK": str(self.local_rank),
                "LOCAL_WORLD_SIZE": str(self.ranks_here),
            }
        )


def node_of_ranks(world: World, place: Place) -> list[str]:
    """The node of every rank. Collective."""
    return world.ranks.gather(place.node)


def check_neighbours(nodes: list[str], ranks_a_node: int) -> None:
    """
    Raises:
        ValueError: the ranks of a node are not neighbours, so that groups of neighbours would span nodes.
    """
    for first in range(0, len(nodes), ranks_a_node):
        if len(set(nodes[first : first + ranks_a_node])) > 1:
            raise ValueError(
                f"ranks {first} to {first + ranks_a_node - 1} run on {', '.join(nodes[first : first + ranks_a_node])}, "
                f"but {ranks_a_node} neighbouring ranks must share a node; take --distribution out of --srun-arg"
            )


def describe_ranks(nodes: list[str], ep_size: int) -> str:
    """Which ranks run where, and what it means for the expert-parallel groups."""
    ranges = []
    for node in dict.fromkeys(nodes):
        ranks = [rank for rank, of_rank in enumerate(nodes) if of_rank == node]
        ranges.append(f"{ranks[0]}-{ranks[-1]} {node}" if len(ranks) > 1 else f"{ranks[0]} {node}")
    spanning = [first for first in range(0, len(nodes), ep_size) if len(set(nodes[first : first + ep_size])) > 1]
    groups = "span nodes" if spanning else "inside nodes"
    return f"ranks {', '.join(ranges)}; expert groups of {ep_size} {groups}"
