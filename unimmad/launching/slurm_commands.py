"""What SLURM says of itself: partitions, their nodes and GPUs, a job's state."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS = 60
ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "REVOKED"),
}
"""States that a job does not leave by itself."""
LOST = "LOST"
"""Our word for a job that neither the controller nor the accounting knows."""
AWAY = "AWAY"
"""Our word for what can't be asked now, because the controller does not answer."""


@dataclass(frozen=True)
class Partition:
    """A named set of nodes."""

    name: str
    is_default: bool
    gpus_of_nodes: dict[str, int]
    """GPUs of each of its nodes, by the node's name."""


@dataclass(frozen=True)
class JobState:
    """A job at one moment."""

    state: str
    exit_code: str = ""
    """``code:signal``, as SLURM shows it."""
    restarts: int = 0
    reason: str = ""
    nodes: str = ""


def why_no_slurm() -> str:
    """Why this machine can't submit to SLURM; empty where it can, even if the controller is away at the moment."""
    if shutil.which("sbatch") is None:
        return "no sbatch"
    if "configuration source" in _call("sinfo", "--noheader").stderr:
        return "its commands are, but no configuration"
    return ""


def partitions() -> list[Partition]:
    """
    Raises:
        ValueError: the controller does not answer.
    """
    gpus: dict[str, dict[str, int]] = {}
    default = ""
    for line in _ask("sinfo", "-a", "-h", "-N", "-o", "%P|%N|%G").splitlines():
        marked, node, resources = line.strip().split("|")
        name = marked.rstrip("*")
        if marked.endswith("*"):
            default = name
        gpus.setdefault(name, {})[node] = count_gpus(resources)
    return [Partition(name, name == default, nodes) for name, nodes in gpus.items()]


def choose_partition(known: Sequence[Partition], asked: str | None) -> Partition:
    """The nodes that a job of ``--partition asked`` (several by commas; None: the default one) may run on.

    Raises:
        ValueError: there is no such partition; names those there are.
    """
    names = ", ".join(sorted(partition.name for partition in known))
    if asked is None:
        found = [partition for partition in known if partition.is_default]
        if not found:
            raise ValueError(f"SLURM has no default partition: choose one by --partition ({names})")
        return found[0]
    chosen: dict[str, int] = {}
    for name in asked.split(","):
        of_name = [partition for partition in known if partition.name == name]
        if not of_name:
            raise ValueError(f"--partition {name}: SLURM has no such partition, but {names}")
        chosen |= of_name[0].gpus_of_nodes
    return Partition(asked, False, chosen)


def count_gpus(resources: str) -> int:
    """GPUs in a node's generic resources as sinfo shows them: ``gpu:a100:4(S:0-1),nic:2`` has 4."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)(?=[(,]|$)", resources))


def job_state(job_id: str) -> JobState:
    """A job (``1234``) or a member of an array (``1234_5``) by the controller, or by accounting once that forgot it."""
    asked = _call("scontrol", "show", "job", "--oneliner", job_id)
    if asked.returncode == 0:
        values = dict(re.findall(r"(\w+)=(\S*)", asked.stdout.splitlines()[0]))
        return JobState(
            values.get("JobState", LOST),
            values.get("ExitCode", ""),
            int(values.get("Restarts", "0")),
            values.get("Reason", ""),
            values.get("NodeList", ""),
        )
    if "Invalid job id" not in asked.stderr:
        return JobState(AWAY, reason=asked.stderr.strip())
    return _accounted_state(job_id)


def _accounted_state(job_id: str) -> JobState:
    asked = _call("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job_id, "--format=State,ExitCode")
    lines = asked.stdout.splitlines() if asked.returncode == 0 else []
    if not lines:
        return JobState(LOST)
    state, exit_code = lines[-1].split("|")
    # "CANCELLED by 1000"
    return JobState(state.split()[0], exit_code)


def active_jobs() -> set[str]:
    """Ids of this user's jobs that wait or run; of an array each member's (``1234_5``).

    Raises:
        ValueError: the controller does not answer.
    """
    return set(_ask("squeue", "--me", "-h", "-r", "-o", "%i").split())


def requeue(job_id: str) -> None:
    """Put a running job back into the queue.

    Raises:
        ValueError: SLURM refuses, or its commands are missing here.
    """
    _ask("scontrol", "requeue", job_id)


def _ask(*argv: str) -> str:
    done = _call(*argv)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{' '.join(argv[:2])}: {said[-1]}")
    return done.stdout


def _call(*argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"{argv[0]} did not answer in {SECONDS} s")
