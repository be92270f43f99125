"""Programs that answer as SLURM's do, put first on the PATH; used by tests."""

from __future__ import annotations

import os
from pathlib import Path

SINFO = "cpu*|a1|(null)\ncpu*|a2|(null)\ngpu|g1|gpu:a100:8(S:0-1)\ngpu|g2|gpu:a100:4,nic:1\n"


def install(folder: Path, monkeypatch, **programs: str) -> None:
    """A shell script for each of ``programs``; ``sbatch`` and ``sinfo`` (two partitions) are always there."""
    folder.mkdir(exist_ok=True)
    scripts = {"sbatch": "exit 1", "sinfo": f"cat <<'END'\n{SINFO}END", **programs}
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
