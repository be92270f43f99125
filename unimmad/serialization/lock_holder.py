"""Who holds a folder's lock, as the lock file says it, and whether that is still so."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from unimmad.serialization.atomic_write import host_name
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Count, Entry

STALE_S = 60.0
"""A holder that was not heard of for so long is gone, where nothing better is known."""
_MOST_BYTES = 4096


class Holder(Entry):
    """What the file says."""

    host: str
    pid: Count
    started: Count
    """When the process began, in the kernel's clock ticks, since its number may be used again."""
    machine: str
    """Where ``pid`` means something; empty where that is not known."""
    since: str
    job: str
    """Of SLURM or torchrun, the same after a restart; empty outside."""
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

    @classmethod
    def this_process(cls) -> Holder:
        pid = os.getpid()
        return cls(
            host=host_name(),
            pid=pid,
            started=_started(pid) or 0,
            machine=_machine(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            job=_job(),
            token=secrets.token_hex(8),
        )


@dataclass(frozen=True)
class Found:
    """A lock file that is there."""

    holder: Holder | None
    """None where the file is damaged, or not yet written."""
    silent_s: float
    """Since it was touched, by the clock of its file system."""

    @property
    def is_near(self) -> bool:
        """Whether this machine can see the holder."""
        return self.holder is not None and self.holder.machine == _machine() != ""

    @property
    def is_stale(self) -> bool:
        if self.holder is not None and self.is_near:
            return _started(self.holder.pid) != self.holder.started
        return self.silent_s > STALE_S

    def __str__(self) -> str:
        if self.holder is None:
            return f"an unknown process, {self._heard}"
        of_job = f" (job {self.holder.job})" if self.holder.job else ""
        heard = "" if self.is_near else f", {self._heard}"
        return one_line(
            f"process {self.holder.pid} on {self.holder.host}{of_job} since {self.holder.since}{heard}", 300
        )

    @property
    def _heard(self) -> str:
        return f"heard of {self.silent_s:.0f} s ago (after {STALE_S:.0f} s it counts as gone)"


def find_lock(path: Path) -> Found | None:
    """None where there is none."""
    read = read_lock(path)
    if read is None:
        return None
    # Hosts' clocks differ: what was touched just now tells the time of the file system.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as now:
        os.utime(now.name)
        return Found(read[0], os.stat(now.name).st_mtime - read[1])


def token_at(path: Path) -> str | None:
    """None where there is no lock."""
    read = read_lock(path)
    return None if read is None else token_of(read[0])


def token_of(holder: Holder | None) -> str:
    return holder.token if holder else "damaged"


def read_lock(path: Path) -> tuple[Holder | None, float] | None:
    """A lock's holder, where it says one, and when it was touched; None where there is no lock."""
    try:
        # Opened, since a network file system then asks its server, and not its cache.
        with path.open("rb") as file:
            content, touched = file.read(_MOST_BYTES), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        return Holder.model_validate_json(content), touched
    except ValidationError:
        return None, touched


def _job() -> str:
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"{job} of SLURM"
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # as torchrun calls it where it has no name
    return "" if run == "none" else f"{run} of torchrun"


def _machine() -> str:
    """One boot of one kernel, and one set of process numbers in it; containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """None where there is no such process, or only what its parent has not yet asked for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state[0] in (b"Z", b"X") else int(state[19])
