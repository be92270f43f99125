from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unimmad.cpu_features import AVX512, SHORT_SPIN, SPIN_VARIABLE, VARIABLE, WAIT_VARIABLE, is_amd_with_avx512

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
    settled = (VARIABLE, SPIN_VARIABLE, WAIT_VARIABLE)
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
