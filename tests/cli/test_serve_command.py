"""The serving command as a user types it: what is wrong is one line, and it ends as it is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.cli.serve import _remedy, main
from unimmad.config import load_recipe
from unimmad.inference.engines import OnnxEngine
from unimmad.serving.server import listening_socket

FREE = ["--port", "0"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([*FREE, "--batch-size", "0"], "a batch size of 0 must be 1 or more"),
        ([*FREE, "--queue", "3"], "a queue of 3 requests never fills a batch of 8"),
        ([*FREE, "--max-wait", "-1"], "must be 0 to 10"),
        ([*FREE, "--max-wait", "nan"], "must be 0 to 10"),
        ([*FREE, "--max-request", "nan"], "can't be a limit for a request"),
        ([*FREE, "--max-request", "0"], "can't be a limit for a request"),
        ([*FREE, "--upload-timeout", "0"], "must be above 0"),
        (["--port", "99999"], "port 99999 does not exist"),
        ([*FREE, "--host", "203.0.113.1"], "choose others with --host and --port"),
        (FREE, "nothing_here"),
    ],
)
def test_what_is_wrong_is_one_line(argv, words, tmp_path, capsys):
    assert main(["--checkpoint", str(tmp_path / "nothing_here"), *argv]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_a_port_in_use_and_a_missing_extra_are_said(capsys, monkeypatch, tmp_path):
    with listening_socket("127.0.0.1", 0) as taken:
        assert main(["--checkpoint", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "unimmad.serving.app", None)
    assert main(["--checkpoint", str(tmp_path), *FREE]) == 2
    assert 'pip install "unimmad[serve]"' in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_status_0(number, tmp_path):
    shards = hand_made_shards(tmp_path / "shards", ["materials"])
    hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [shards])
    command = [sys.executable, "-m", "unimmad", "serve", "--checkpoint", str(tmp_path / "run"), *FREE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=pipe, stderr=pipe, text=True) as service:
        said = service.stdout.readline()
        assert said.startswith(f"serving {tmp_path / 'run'} at http://127.0.0.1:")
        connection = HTTPConnection("127.0.0.1", int(said.rpartition(":")[2]), timeout=60)
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() == b'{"ready":true}'
        service.send_signal(number)
        assert service.wait(60) == 0
        assert "Traceback" not in service.stderr.read()


@pytest.mark.parametrize(("misses_class", "said"), [(False, "and export it again"), (True, "serve the checkpoint")])
def test_an_exported_file_without_thresholds_says_what_gives_some(misses_class, said):
    engine = OnnxEngine.__new__(OnnxEngine)
    engine.metadata = SimpleNamespace(misses_class=misses_class)
    assert said in _remedy(SimpleNamespace(engine=engine))
