"""Processes of one run that cannot meet."""

from __future__ import annotations

import socket
import sys

import pytest
from launches import EVALUATE, TRAIN, run


@pytest.mark.parametrize("program", [TRAIN, EVALUATE], ids=["train", "evaluate"])
def test_a_port_that_another_program_has_is_said_in_one_line(tmp_path, monkeypatch, program):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        done = run([sys.executable, str(program)], tmp_path, threads=1)
    assert done.returncode == 2
    [said] = [line for line in done.stderr.splitlines() if line.startswith(program.name)]
    assert f"ranks can't meet at 127.0.0.1:{port}" in said
    assert "--master_port" in said
    assert "Traceback" not in done.stderr
