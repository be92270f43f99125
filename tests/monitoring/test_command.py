"""``unimmad monitor`` as a user types it, on predictions that are made up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import needs_browser, shown
from monitoring.conftest import CLASSES
from PIL import Image

from unimmad.checkpoint.folder import STATE_NAME
from unimmad.checkpoint.monitoring import MONITORING_NAME, MonitoringReference, save_reference
from unimmad.cli.monitor import main
from unimmad.monitoring.monitor import Seen

ROOT = Path(__file__).parents[2]
Line = Callable[..., str]


@pytest.fixture
def place(tmp_path, monkeypatch, reference) -> Path:
    """runs/mine, a checkpoint of which nothing but the calibration is there."""
    checkpoint = tmp_path / "runs" / "mine"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE_NAME).write_text("{}")
    save_reference(reference, checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_line(seen: Seen, reference: MonitoringReference) -> str:
    """As prediction writes it, but for what a monitor does not read."""
    content = {
        "name": seen.name,
        "class": seen.class_name,
        "modalities": seen.modalities,
        "score": seen.score,
        "anomalous": seen.anomalous,
        "monitor": {"reference": reference.digest, "time": seen.time, "images": seen.images},
    }
    return json.dumps(content) + "\n"


@pytest.fixture
def line(predicted, reference) -> Line:
    return lambda *args, **kwargs: as_line(predicted(*args, **kwargs), reference)


@pytest.fixture
def typed(place, capsys):
    """Run the command; returns its exit code, standard output and standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["--checkpoint", "runs/mine", *argv])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@needs_browser
def test_the_page_in_a_browser(typed, place, line):
    """A shift of one class, whose images have hostile names; the other class is as ever."""
    moved = [line(CLASSES[0], {"moved_right": -6} if number >= 40 else None) for number in range(80)]
    other = [line(CLASSES[1]) for _ in range(40)]
    hostile = [json.dumps({**json.loads(one), "name": "<img src=x onerror=alert(1)>"}) + "\n" for one in moved]
    (place / "a & <b>.jsonl").write_text("".join([*hostile, *other]))
    code, _, _ = typed("a & <b>.jsonl", "--output-dir", "seen")
    page = place / "seen" / "monitor.html"
    found = shown(page, place)
    assert code == 3
    assert found.console == []
    assert found.wide <= 0
    assert all(found.anchors.values())
    assert set(found.anchors) == {"#drift", "#curves", "#statistics"}
    assert len(found.pictures) == 6, "of two classes the scores, and images of two modalities"
    for name, size in found.pictures.items():
        with Image.open(page.parent / name) as picture:
            assert picture.size == size
    first = next(iter(found.pictures))
    assert "cookie" in first, "what changed stands before what did not"
    assert "image drift · solids/cookie rgb · shift: left" in found.text
    assert "(<img src=x onerror=alert(1)>, 2026-01-02T03:04:05+00:00), noticed at image" in found.text
    assert "a & <b>.jsonl" in found.text


def test_without_a_change_it_ends_with_0_and_with_one_with_3(typed, place, line):
    (place / "a.jsonl").write_text("".join(line() for _ in range(50)))
    code, out, _ = typed("a.jsonl")
    assert (code, "50 images of 1 class: no drift" in out) == (0, True)
    assert json.loads((place / "monitoring" / "monitor.json").read_text())["verdicts"] == []

    dark = [line(moved={"brightness": -6}) for _ in range(30)]
    (place / "b.jsonl").write_text("".join([*dark, line("<b>/nut")]).rstrip("\n"))  # the last line without its end
    code, out, _ = typed("a.jsonl", "b.jsonl", "--output-dir", "found")
    assert code == 3
    assert out.startswith("DRIFT solids/cookie rgb: exposure: darker\n  brightness lower since image ")
    found = json.loads((place / "found" / "monitor.json").read_text())
    (verdict,) = found["verdicts"]
    assert (verdict["class"], verdict["modalities"], verdict["causes"]) == (CLASSES[0], ["rgb"], ["exposure: darker"])
    assert verdict["since"]["name"] == f"part{verdict['since']['number']}"
    assert verdict["since"]["time"] == "2026-01-02T03:04:05+00:00"
    assert found["not_watched"] == {"<b>/nut": 1}
    page = (place / "found" / "monitor.html").read_text()
    assert "exposure: darker" in page
    assert "&lt;b&gt;/nut" in page
    assert "<b>/nut" not in page
    pictures = sorted(path.name for path in (place / "found" / "monitor_pictures").iterdir())
    assert len(pictures) == 3
    assert all(name in page.replace("%7E", "~") for name in pictures)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a.jsonl can't be read: No such file"),
        (b"", "a.jsonl is empty: it holds no prediction"),
        (b"LINE\n{\n", "a.jsonl line 2: not a prediction"),
        (b"OTHER\n", "a.jsonl line 1: a prediction of another checkpoint"),
        (
            b"UNKNOWN\n",
            r"no prediction is of a calibrated class, but of: solids/nut \(1\); calibrated are solids/cookie",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(typed, place, line, content, said):
    if content is not None:
        texts = {
            b"LINE": line(),
            b"UNKNOWN": line("solids/nut"),
            b"OTHER": line().replace('"reference": "', '"reference": "0'),
        }
        for word, text in texts.items():
            content = content.replace(word, text.strip().encode())
        (place / "a.jsonl").write_bytes(content)
    code, out, err = typed("a.jsonl")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=said):
        raise ValueError(err)
    assert not (place / "monitoring").exists()


def test_a_checkpoint_that_kept_nothing_is_refused(typed, place):
    (place / "runs" / "mine" / MONITORING_NAME).unlink()
    code, _, err = typed("a.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no monitoring.safetensors" in err
    assert "run unimmad calibrate --checkpoint runs/mine, and predict again" in err


def test_a_watch_follows_through_rotation_and_broken_lines_until_it_is_interrupted(place, line):
    """The file is not there yet when it begins."""
    command = [sys.executable, "-m", "unimmad", "monitor", "--checkpoint", "runs/mine", "--watch", "a.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in a shell's background, it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        (place / "a.jsonl").write_text("".join(line() for _ in range(40)) + "{broken\n")
        shutil.copy("a.jsonl", "b.jsonl")
        assert process.stderr is not None
        assert process.stdout is not None
        assert "passed over: a.jsonl line 41: not a prediction" in process.stderr.readline()
        (place / "a.jsonl").rename("a.1")
        (place / "new").write_text("".join(line(moved={"noise": 6}) for _ in range(30)))
        (place / "new").rename("a.jsonl")
        assert process.stdout.readline().startswith("DRIFT solids/cookie rgb noise: noise higher since image ")
        deadline = time.monotonic() + 60
        while not (place / "monitoring" / "monitor.html").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (3, "unimmad monitor: no longer watching\n")
    assert "70 images of 1 class: 1 of 20 statistics changed" in out
    assert "Traceback" not in out + err
