"""Names of files reach the screen whatever its encoding, and a reader who leaves early is no error."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from launches import ROOT, environment

from unimmad.cli.console import UNREAD, print_any_name, quiet_if_unread, run_command
from unimmad.serialization.text import ListedError


@pytest.fixture(autouse=True)
def sigterm_as_at_the_start() -> Iterator[None]:
    """Whatever another command's test left in this process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


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


def raiser(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 3, 3, ""),
        (raiser(ValueError("a\x1b[2Jb")), 2, "unimmad x: a\\x1b[2Jb\n"),
        (raiser(ListedError("two are wrong:\n  one\n  other")), 2, "unimmad x: two are wrong:\n  one\n  other\n"),
        (raiser(PermissionError(13, "Permission denied", "f")), 2, "unimmad x: [Errno 13] Permission denied: 'f'\n"),
        (raiser(KeyboardInterrupt()), 130, "unimmad x: interrupted; all of it stays\n"),
        (raiser(KeyboardInterrupt("; 3 of 4 stay")), 130, "unimmad x: interrupted; 3 of 4 stay\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 130, "unimmad x: interrupted; all of it stays\n"),
    ],
    ids=["none", "status", "error", "listed", "system", "interrupted", "interrupted with words", "sigterm"],
)
def test_a_command_ends_with_a_status_and_a_line(capsys, command, status, said):
    assert run_command("unimmad x", command, if_interrupted="; all of it stays") == status
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_command_leaves_sigterm_to_a_server_and_a_broken_pipe_to_whoever_knows_it():
    found = []
    run_command("unimmad x", lambda: found.append(signal.getsignal(signal.SIGTERM)), sigterm=False)
    assert found == [signal.SIG_DFL]
    with pytest.raises(BrokenPipeError):
        run_command("unimmad x", raiser(BrokenPipeError()))


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
