from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from unimmad.cpu_features import (
    AVX512,
    MALLOC_VARIABLES,
    SHORT_SPIN,
    SPIN_VARIABLE,
    VARIABLE,
    WAIT_VARIABLE,
    is_amd_with_avx512,
)

ROOT = Path(__file__).parents[1]
CPU_INFO = "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu sse2 {flags} vaes\n\nprocessor\t: 1\n"


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


@pytest.mark.parametrize(
    ("first", "preset", "expected"), [("", None, AVX512), ("numpy, ", None, None), ("", "AVX512F", "AVX512F")]
)
def test_it_is_set_before_numpy_and_never_over_the_users_choice(first, preset, expected):
    program = (
        f"import sys, os, {first}pathlib; pathlib.Path.read_text = lambda *_, **__: {CPU_INFO!r}.format("
        f"vendor='AuthenticAMD', flags='avx512f'); import unimmad; print(os.environ.get({VARIABLE!r}))"
    )
    assert run(program, VARIABLE, preset) == str(expected)


def run(program: str, variable: str, preset: str | None) -> str:
    """What ``program`` prints, with ``variable`` as ``preset`` and none of the others set."""
    settled = (VARIABLE, SPIN_VARIABLE, WAIT_VARIABLE, *MALLOC_VARIABLES)
    environment = {key: value for key, value in os.environ.items() if key not in settled}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if preset is None else {variable: preset})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("first", "variable", "preset", "expected"),
    [
        ("", SPIN_VARIABLE, None, SHORT_SPIN),
        ("torch, ", SPIN_VARIABLE, None, None),
        ("", SPIN_VARIABLE, "7", "7"),
        ("", WAIT_VARIABLE, "ACTIVE", None),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_has_said_how_they_wait(first, variable, preset, expected):
    program = f"import {first}os, unimmad; print(os.environ.get({SPIN_VARIABLE!r}))"
    assert run(program, variable, preset) == str(expected)


FAULTS_OF_REUSE = """
import resource, unimmad, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    for _ in range(20):
        torch.ones(4 * 2**20)
print(faults() - before)
"""
PAGES = 20 * 16 * 2**20 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or os.sysconf("SC_PAGESIZE") != 4096, reason="for glibc")
@pytest.mark.parametrize(
    ("preset", "fewest", "most"), [(None, 0, PAGES // 10), ("65536", PAGES // 2, 2 * PAGES)], ids=["ours", "user's"]
)
def test_memory_is_used_again_unless_the_user_has_said_otherwise(preset, fewest, most):
    """Twenty tensors of 16 MiB one after the other: in new memory, every page of each is a fault."""
    assert fewest <= int(run(FAULTS_OF_REUSE, MALLOC_VARIABLES[0], preset)) <= most
