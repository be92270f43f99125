"""All outcomes as one JSON and one Markdown file, with the machine they were found on."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu.check import Outcome

from unimmad.profiling.machine import machine_name
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside

JSON_FILE, MARKDOWN_FILE = "check-gpu.json", "check-gpu.md"
ROOT = Path(__file__).resolve().parents[2]


def machine(device: str, recipe: str) -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "device": machine_name(torch.device(device)),
        "recipe": recipe,
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "none",
        "DeepSpeed": _version("deepspeed"),
        "timm": _version("timm"),
        "Python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
    }


def write_report(folder: Path, on: dict[str, str], outcomes: Sequence[Outcome]) -> list[Path]:
    """The two files."""
    found = {"machine": on, "checks": [asdict(outcome) for outcome in outcomes]}
    write_text_aside(folder / JSON_FILE, json.dumps(found, indent=2) + "\n")
    write_text_aside(folder / MARKDOWN_FILE, markdown(on, outcomes))
    return [folder / JSON_FILE, folder / MARKDOWN_FILE]


def markdown(on: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Checks, then speeds, then the longest kernels."""
    lines = ["# GPU check", "", ", ".join(f"{name} {value}" for name, value in on.items()), ""]
    rows = [[one.name, one.status, f"{one.seconds:.0f}", _told(one)] for one in outcomes]
    lines.append(Table(["check", "result", "s", "found"], rows, names=4).to_markdown())
    speeds = [row for one in outcomes for row in one.speeds]
    if speeds:
        heads = list(speeds[0])
        lines.append(Table(heads, [[row[head] for head in heads] for row in speeds], names=3).to_markdown())
        lines += ["MFU: share of the rate of large matrix products in the row's precision, measured in turns with"]
        lines += ["it (training in fp32 on a GPU: TF32). images/s: a sample is an image of each modality."]
    for one in outcomes:
        for table in one.tables:
            lines += ["", table]
    return "\n".join(lines) + "\n"


def _told(one: Outcome) -> str:
    facts = "; ".join(f"{name}: {_words(value)}" for name, value in one.facts.items())
    return one.why or facts


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _commit() -> str:
    commit = _said_by("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _said_by("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit or "not in a git checkout"


def _said_by(*argv: str) -> str:
    """First line; empty where the command is missing or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
