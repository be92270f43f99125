"""Loader processes end with their program, whatever still refers to them."""

from __future__ import annotations

import subprocess
import sys

KEPT_TO_THE_END = """
from unimmad.data.reading.worker_pool import load_each, start_worker_server

if __name__ == "__main__":
    start_worker_server("unimmad.data.reading.stream")
    kept = load_each(abs, list(range(100)), 1, "unimmad.data.reading.stream")
    print(next(kept))
"""


def test_a_program_ends_though_something_refers_to_its_loader(tmp_path):
    script = tmp_path / "kept.py"
    script.write_text(KEPT_TO_THE_END)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
