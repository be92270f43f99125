"""Names of files reach the screen whatever its encoding, and a reader who leaves early is no error."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from launches import ROOT, environment

from unimmad.cli.console import UNREAD, print_any_name, quiet_if_unread


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_the_encoding_lacks_is_escaped(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with pytest.raises(UnicodeEncodeError):
        print("a\udce9ö")
    print_any_name()
    print("a\udce9ö")
    sys.stdout.flush()
    assert raw.getvalue().decode(encoding).rstrip() == ("a\\udce9\\xf6" if encoding == "ascii" else "a\\udce9ö")


def said_to_nobody(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Exit status and standard error of a Python program whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


DRY_RUN = ("--cluster", "local", "--dry-run")


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "unimmad", "--help"),
        ("-m", "unimmad", "shards", "--list"),
        ("-m", "unimmad", "evaluate", "--help"),
        ("-m", "unimmad", "launch", *DRY_RUN),
        (str(ROOT / "slurm" / "launch.py"), *DRY_RUN),
        (str(ROOT / "tools" / "make_shards.py"), "--list"),
        (str(ROOT / "tools" / "benchmark.py"), "--help"),
    ],
    ids=lambda words: " ".join(Path(word).name for word in words),
)
def test_a_reader_who_leaves_ends_a_command_without_a_word(words, tmp_path):
    status, said = said_to_nobody(words, tmp_path)
    # argparse passes over it where a help is longer than the buffer.
    assert status == 128 + signal.SIGPIPE or (status == 0 and "--help" in words)
    assert said == ""


def test_another_pipe_that_breaks_is_told():
    def fails() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        quiet_if_unread(fails)
    assert quiet_if_unread(lambda: 3) == 3 != UNREAD
