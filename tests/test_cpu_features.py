"""Commands settle how NumPy and PyTorch use the processor before importing them; ``import unimmad`` settles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unimmad.cpu_features import AVX512, SHORT_SPIN, SPIN_VARIABLE, SWITCH, VARIABLE, WAIT_VARIABLE, is_amd_with_avx512

ROOT = Path(__file__).parents[1]
ENTRIES = [
    *(f"tools/{name}.py" for name in ("convert", "evaluate", "export", "make_shards", "predict")),
    "slurm/launch.py",
    "unimmad/train.py",
]
"""The scripts of a checkout, all of which are commands too."""
CPU_INFO = "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu sse2 {flags} vaes\n\nprocessor\t: 1\n"
PRETEND_AMD = (
    "import sys, os, json, pathlib; read = pathlib.Path.read_text; "
    "pathlib.Path.read_text = lambda path, *words, **more: "
    f"{CPU_INFO.format(vendor='AuthenticAMD', flags='avx512f')!r} if str(path) == '/proc/cpuinfo' "
    "else read(path, *words, **more); "
)
SAY = "print(json.dumps(dict(os.environ)))"
TUNE = "from unimmad.cpu_features import tune_cpu; tune_cpu(); "
TUNED = {VARIABLE: AVX512, SPIN_VARIABLE: SHORT_SPIN}


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512bw", True),
        ("AuthenticAMD", "avx2", False),
        ("GenuineIntel", "avx512f", False),
    ],
)
def test_which_processors_it_is_for(tmp_path, vendor, flags, expected):
    (tmp_path / "cpuinfo").write_text(CPU_INFO.format(vendor=vendor, flags=flags))
    assert is_amd_with_avx512(tmp_path / "cpuinfo") is expected
    assert not is_amd_with_avx512(tmp_path / "none")


def settled(program: str, preset: Mapping[str, str] | None = None) -> dict[str, str]:
    """Which of the variables a Python ``program``, with ``preset`` alone of them, has set on a pretended processor."""
    ours = (VARIABLE, SPIN_VARIABLE, WAIT_VARIABLE, SWITCH)
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment |= {"PYTHONPATH": str(ROOT), **(preset or {})}
    done = subprocess.run(
        [sys.executable, "-c", PRETEND_AMD + program], capture_output=True, text=True, check=True, env=environment
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {key: said[key] for key in ours if key in said}


@pytest.mark.parametrize(
    ("first", "preset", "expected"),
    [
        ("", {}, TUNED),
        ("import numpy; ", {}, {SPIN_VARIABLE: SHORT_SPIN}),
        ("import numpy, torch; ", {}, {}),
        ("", {VARIABLE: "AVX512F", SPIN_VARIABLE: "7"}, {VARIABLE: "AVX512F", SPIN_VARIABLE: "7"}),
        ("", {WAIT_VARIABLE: "ACTIVE"}, {VARIABLE: AVX512, WAIT_VARIABLE: "ACTIVE"}),
        ("", {SWITCH: "0"}, {SWITCH: "0"}),
        ("", {SWITCH: "1"}, {**TUNED, SWITCH: "1"}),
    ],
)
def test_it_sets_what_is_not_set_before_it_is_read(first, preset, expected):
    assert settled(f"{first}{TUNE}{SAY}", preset) == expected


def test_importing_the_package_and_its_detector_sets_nothing():
    assert settled(f"import unimmad; {SAY}") == {}
    assert settled(f"from unimmad import Detector; {SAY}") == {}


@pytest.mark.parametrize("command", ["shards", "train", "evaluate", "calibrate", "predict", "export", "convert"])
def test_every_command_is_tuned_before_numpy_is_there(command):
    """In place of the command's work, its module says what it finds."""
    program = (
        "import types, unimmad.cli.main as entry; work = types.SimpleNamespace(main=lambda: "
        "print(json.dumps(dict(os.environ) | {'GOMP_SPINCOUNT': os.environ['GOMP_SPINCOUNT'] "
        "+ ' too late' * ('numpy' in sys.modules)})) or 0); "
        f"entry.import_module = lambda name: work; entry.main(['{command}'])"
    )
    assert settled(program) == TUNED


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_script_is_the_command_of_its_name(entry):
    """So it comes through what tunes; a launch leaves it to the job, whose node may have another processor."""
    program = (
        "import types, runpy, unimmad.cli.main as entry; names = []; "
        f"work = types.SimpleNamespace(main=lambda: {SAY} or 0); "
        "entry.import_module = lambda name: names.append(name) or work\n"
        f"try: runpy.run_path({str(ROOT / entry)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(json.dumps(dict(os.environ, NAME=names[0])))"
    )
    assert settled(program) == ({} if entry == "slurm/launch.py" else TUNED)


def test_a_jobs_task_is_tuned_on_its_node_before_numpy_is_there():
    program = (
        "from pathlib import Path; from unimmad.launching import job\n"
        f"def begin(*_): {SAY}; sys.exit('numpy' in sys.modules)\n"
        "job.StopRequest = begin; job.TrainingJob((), Path(), 1, 1, 1, 'key')()"
    )
    assert settled(program) == TUNED
