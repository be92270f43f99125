"""The check of a GPU: the same script on a CPU, and that one check's failure is its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from gpu import command, running
from gpu.check import Outcome, Setting
from gpu.registry import CHECKS
from gpu.report import markdown
from gpu.running import outcomes_of
from launches import ROOT, run


def outcomes(folder: Path, *names: str, seconds: float = 300) -> list[Outcome]:
    setting = Setting("cpu", "tiny", folder)
    return list(outcomes_of(names, setting, folder, time.monotonic() + seconds, worker="gpu.ill_behaved"))


def test_a_check_that_fails_breaks_or_dies_fails_alone(tmp_path):
    found = outcomes(tmp_path, "fails", "passes", "is skipped", "passes again", "breaks", "dies", "passes at last")
    told = [(one.name, one.status, one.why.partition(";")[0]) for one in found]
    assert told == [
        ("fails", "failed", "2 is not 3"),
        ("passes", "passed", ""),
        ("is skipped", "skipped", "needs a moon"),
        ("passes again", "passed", ""),
        ("breaks", "failed", "ZeroDivisionError: integer division or modulo by zero"),
        ("dies", "failed", "its process ended with 7"),
        ("passes at last", "passed", ""),
    ]
    processes = [one.facts["process"] for one in found if one.status == "passed"]
    assert processes[0] == processes[1] != processes[2]
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_check_that_hangs_is_ended_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(running.LONGEST, "cpu", 5.0)
    hung, passed = outcomes(tmp_path, "hangs", "passes")
    assert (hung.status, passed.status) == ("failed", "passed")
    assert hung.why.startswith("not done after 5 s")


def test_what_is_not_done_in_time_says_so(tmp_path):
    passed, hung, late = outcomes(tmp_path, "passes", "hangs", "passes again", seconds=6)
    assert [one.status for one in (passed, hung, late)] == ["passed", "no time left", "no time left"]
    assert (hung.why, late.why) == ("ended before it was done", "not begun")


def test_a_failure_is_the_exit_status_and_everything_is_written(tmp_path, monkeypatch, capsys):
    failed = Outcome("evaluate", "failed", 2.0, "a | b\nc")
    speed = {"task": "evaluation", "form": "ours", "precision": "bf16", "images/s": "12", "MFU": "40%"}
    passed = Outcome("predict", "passed", 1.0, facts={"samples": 2}, speeds=[speed], tables=["| kernel |"])
    monkeypatch.setattr(command, "outcomes_of", lambda names, *_: {"evaluate": [failed, passed]}.get(*names, []))
    argv = ["--device", "cpu", "--only", "evaluate", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(command, "GROUPS", ({"evaluate": None},))
    assert command.main(argv) == 1
    written = json.loads((tmp_path / "check-gpu.json").read_text())
    assert [check["status"] for check in written["checks"]] == ["failed", "passed"]
    assert {"device", "PyTorch", "CUDA", "driver", "date", "commit"} <= written["machine"].keys()
    table = (tmp_path / "check-gpu.md").read_text()
    assert "| evaluate | failed | 2 | a \\| b c" in table
    assert "| evaluation | ours | bf16" in table
    assert "| kernel |" in table
    assert table in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


def test_what_is_not_measured_is_no_failure():
    assert "no time left" in markdown({}, [Outcome("predict", "no time left", why="not begun")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cpu", "--only", "nonsense"], "no check is called nonsense; --list names them"),
        (["--device", "cpu", "--minutes", "0"], "--minutes 0 must be above 0"),
        (["--device", "cpu", "--recipe", "tinny"], "did you mean tiny"),
        ([], "there is no GPU that PyTorch can use here; --device cpu"),
    ],
)
def test_bad_words_are_one_line_and_code_2(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert command.main(argv) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_command_lists_its_checks(tmp_path):
    done = run([sys.executable, str(ROOT / "tools" / "check_gpu.py"), "--list"], tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-len(CHECKS) :] == list(CHECKS)  # behind what DeepSpeed prints


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_checks_pass_on_a_cpu(tmp_path):
    argv = ["--device", "cpu", "--minutes", "50", "--output-dir", str(tmp_path / "out")]
    done = run([sys.executable, str(ROOT / "tools" / "check_gpu.py"), *argv], tmp_path, 3500)
    log = (tmp_path / "out" / "logs" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    checks = json.loads((tmp_path / "out" / "check-gpu.json").read_text())["checks"]
    assert [check["name"] for check in checks] == list(CHECKS)
    skipped = {check["name"] for check in checks if check["status"] == "skipped"}
    assert skipped == {name for name in CHECKS if name.startswith("speed compiled")}
    by_name = {check["name"]: check["facts"] for check in checks}
    assert by_name["30 steps, bf16"]["convolutions"].keys() == {"bfloat16"}
    assert by_name["30 steps, fp32"]["convolutions"].keys() == {"float32"}
