"""The page for looking at predictions: asked over HTTP by anybody, and used by keys and mouse in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from browser import Driven, needs_browser
from PIL import Image
from serving.conftest import Client

from unimmad.cli.review import main
from unimmad.inference.predicted import predictions_digest
from unimmad.serving.review import Review, create_review_app
from unimmad.serving.server import listening_socket

SCORES = {"a/1": 0.5, "a/<b>2</b>": 0.9, "a/3": 0.7}
COMMAND = "unimmad feedback --csv decisions.csv"
STAMPED = "name,decision,predictions\n"
"""First line of what a review writes; ``OF`` below stands for the digest of the predictions."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three predictions; the last one's picture is said to lie elsewhere."""
    found = tmp_path / "predictions"
    (found / "pictures").mkdir(parents=True)
    lines = []
    for number, (name, score) in enumerate(SCORES.items()):
        Image.new("RGB", (40 + number, 30), (0, 90 * number, 0)).save(found / "pictures" / f"{number}.png")
        line = {"name": name, "class": "solids/cookie", "modalities": ["rgb"], "score": score, "threshold": 0.6}
        line |= {"anomalous": score > 0.6, "files": {"rgb": "1.png"}, "notes": ["a <i>note</i>"], "more": 1}
        lines.append(json.dumps({**line, "picture": f"pictures/{number}.png"}))
    (found / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    return found


@pytest.fixture
def client(folder) -> Iterator[Client]:
    with listening_socket("127.0.0.1", 0) as listening:
        app = create_review_app(Review(folder), COMMAND, ("127.0.0.1",))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def decide(client: Client, body: bytes, **headers: str) -> int:
    return client.raw("POST", "/decisions", body, {"Content-Type": "application/json", **headers})[0]


@needs_browser
def test_a_person_calls_predictions_by_keys_and_buttons(folder, client, tmp_path):
    decisions, of = folder / "decisions.csv", predictions_digest(folder)
    origin = f"http://127.0.0.1:{client.port}/"
    with Driven(origin, tmp_path / "browser") as page:
        page.wait_for("document.querySelector('#name').textContent === 'a/<b>2</b>'")  # the highest score first
        page.wait_for("document.querySelector('#picture').naturalWidth === 41")
        assert page.value("document.querySelectorAll('main b, main i').length") == 0, "names and notes are text"
        page.press("a")
        page.wait_for("document.querySelector('#name').textContent === 'a/3'")
        page.click("#normal")
        page.wait_for("document.querySelector('#called').textContent === '2 of 3 called'")
        page.press("ArrowLeft")
        assert page.value("document.querySelector('#normal').getAttribute('aria-pressed')") == "true"
        page.value("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true}))")
        assert page.value("document.querySelector('#normal').getAttribute('aria-pressed')") == "true", "it is held down"
        page.press("u")
        page.press("n")
        assert page.value("document.querySelector('#complete').hidden") is True
        page.press("n")
        page.wait_for("!document.querySelector('#complete').hidden")
        page.value("sending")  # all are sent
        assert decisions.read_text() == (
            f"name,decision,predictions\na/<b>2</b>,anomalous,{of}\na/3,normal,{of}\na/1,normal,{of}\n"
        )
        assert page.value("document.querySelector('#command').textContent") == COMMAND
        decisions.unlink()
        decisions.mkdir()  # what can't be written is said, and does not count
        page.press("a")
        page.press("u")
        page.press("ArrowLeft")
        page.press("a")
        page.wait_for("document.querySelector('#error').textContent.includes('call again: a/1, a/3')")
        page.press("ArrowRight")
        assert page.value("document.querySelector('#normal').getAttribute('aria-pressed')") == "true"
        assert page.value("document.documentElement.scrollWidth <= innerWidth") is True
        assert [url for url in page.asked_for if not url.startswith((origin, "data:"))] == []
        assert [said for said in page.said if "500 (Internal Server Error)" not in said] == []
        if where := os.environ.get("UNIMMAD_TEST_PICTURES"):
            Path(where).write_bytes(page.picture())


def test_nothing_but_decisions_and_pictures_is_had_from_outside(folder, client, tmp_path):
    lines = folder / "predictions.jsonl"
    for place in ("../secret.png", "pictures/../../secret.png", str(tmp_path / "secret.png"), "pictures/link.png"):
        (folder / "pictures" / "link.png").unlink(missing_ok=True)
        (folder / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
        lines.write_text(lines.read_text().replace("pictures/2.png", place))
        assert Review(folder).picture(2) is None
        lines.write_text(lines.read_text().replace(place, "pictures/2.png"))
    lines.write_text(lines.read_text().replace("pictures/2.png", f"pictures/{'a' * 300}.png"))
    assert Review(folder).picture(2) is None
    lines.write_text(lines.read_text().replace("a" * 300, "2"))
    (folder / "pictures").rename(tmp_path / "elsewhere")
    (folder / "pictures").symlink_to(tmp_path / "elsewhere")
    assert Review(folder).picture(1) is None
    (folder / "pictures").unlink()
    (tmp_path / "elsewhere").rename(folder / "pictures")
    status, headers, body = client.raw("GET", "/pictures/1.png")
    assert (status, headers["content-type"], body[:4]) == (200, "image/png", b"\x89PNG")
    assert "default-src 'none'" in headers["content-security-policy"]
    for path in (
        "/pictures/3.png",
        "/pictures/-1.png",
        "/pictures/..%2f..%2fsecret.png",
        "/decisions.csv",
        "/openapi.json",
    ):
        assert client.raw("GET", path)[0] == 404, path
    good = b'{"number": 1, "decision": "normal"}'
    assert decide(client, good, Host="evil.example") == 400
    assert client.raw("POST", "/decisions", good, {"Content-Type": "text/plain"})[0] == 415
    bad = {b'{"number": 3, "decision": "normal"}': 404, b'{"number": 1, "decision": "odd"}': 422, b"{": 422}
    assert {body: decide(client, body) for body in bad} == bad
    assert decide(client, b"[" * 5000) == 413
    assert not (folder / "decisions.csv").exists()
    assert decide(client, good) == 200
    assert Review(folder).decisions == {"a/<b>2</b>": "normal"}, "a review goes on where one left off"
    for refused in ("/pictures/3.png", "/nothing"):
        assert "default-src 'none'" in client.raw("GET", refused)[1]["content-security-policy"]
    lines.write_text(lines.read_text().replace("0.9", "0.8"))
    with pytest.raises(ValueError, match=r"is of other predictions than those that .* holds by now, move it away"):
        Review(folder)
    assert [path.name for path in folder.glob(".decisions*")] == []


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("predictions.jsonl", "", "is empty"),
        ("predictions.jsonl", '{"name": 1}\n', "line 1: not a prediction"),
        ("decisions.csv", f"{STAMPED}b,normal,OF\n", "is of other predictions, move it away: b is none of the 3"),
        ("decisions.csv", f"{STAMPED}a/1,good,OF\n", "row 2: 'a/1,good' is not a name and normal or anomalous"),
        ("decisions.csv", f"{STAMPED}a/1,normal,OF\na/1,anomalous,OF\n", "row 3: 'a/1' is called both"),
        ("decisions.csv", f"{STAMPED}a/1,normal\n", "is of other predictions than those"),
        ("decisions.csv", "name,decision\na/1,normal\n", "does not say which predictions it is of"),
        ("decisions.csv", "", "its first line must be name,decision"),
    ],
)
def test_what_is_wrong_is_one_line(file, content, words, folder, capsys):
    (folder / file).write_text(content.replace("OF", predictions_digest(folder)))
    assert main([str(folder), "--port", "0"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_a_folder_without_predictions_and_a_missing_extra_are_said(tmp_path, folder, capsys, monkeypatch):
    assert main([str(tmp_path)]) == 2
    assert "name the folder that unimmad predict wrote" in capsys.readouterr().err
    (tmp_path / "predictions.partial.jsonl").touch()
    assert main([str(tmp_path)]) == 2
    assert "interrupted prediction" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "unimmad.serving.review", None)
    assert main([str(folder)]) == 2
    assert 'pip install "unimmad[serve]"' in capsys.readouterr().err


@pytest.mark.long
def test_the_command_ends_with_what_to_type_next(folder):
    (folder / "decisions.csv").write_text(f"{STAMPED}a/1,normal,{predictions_digest(folder)}\n")
    command = [sys.executable, "-m", "unimmad", "review", str(folder), "--port", "0", "--checkpoint", "runs/my run"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as review:
        said = review.stdout.readline()
        assert "3 predictions at http://127.0.0.1:" in said
        assert Client(int(said.partition("127.0.0.1:")[2].partition(" ")[0])).raw("GET", "/samples")[0] == 200
        assert said.endswith(" until Ctrl-C\n"), "nothing sticks to the address"
        review.send_signal(signal.SIGINT)
        said, _ = review.communicate(timeout=60)
    assert review.returncode == 0
    assert f"1 of 3 called, in {folder}/decisions.csv" in said
    assert (
        f"next: unimmad feedback --checkpoint 'runs/my run' --predictions {folder} --csv {folder}/decisions.csv" in said
    )


def test_where_nothing_was_called_no_file_is_named(folder, monkeypatch, capsys):
    monkeypatch.setattr("unimmad.serving.server.serve", lambda app, listening: None)
    assert main([str(folder), "--port", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 3 called, nothing is saved"
