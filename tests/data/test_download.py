"""Files from URLs: by http, fsspec and commands; tried again when it may help, and not when it cannot."""

import logging
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unimmad.data.reading import download
from unimmad.data.reading.download import FetchError, fetch

DATA = bytes(range(256)) * 10


class Handler(BaseHTTPRequestHandler):
    answers: list[int]
    """Status of each coming answer; 0 breaks the connection in the middle."""
    location = ""
    """Where a status of 302 leads."""

    def do_GET(self) -> None:
        status = self.answers.pop(0)
        self.send_response(status or 200)
        if status == 302:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA if status else DATA[:100])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/set"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(download, "sleep", waited.append)
    return waited


def test_http(server: str) -> None:
    Handler.answers = [200]
    assert fetch(f"{server}/a", 10_000) == DATA


def test_a_passing_failure_is_tried_again_ever_later_and_logged(
    server: str, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    Handler.answers = [503, 500, 429, 200]
    with caplog.at_level(logging.WARNING):
        assert fetch(f"{server}/a?signature=secret", 10_000) == DATA
    assert waits == [1, 2, 4]
    assert "HTTP 503" in caplog.text
    assert "attempt 2 of 6 in 1 s" in caplog.text
    assert "secret" not in caplog.text


def test_a_connection_that_breaks_is_tried_again(server: str, waits: list[float]) -> None:
    Handler.answers = [0, 200]
    assert fetch(f"{server}/a", 10_000) == DATA
    assert waits == [1]


def test_attempts_are_bounded(server: str, waits: list[float]) -> None:
    Handler.answers = [503] * 10
    with pytest.raises(FetchError, match=r"/set/a: cannot be read after 6 attempts \(HTTP 503"):
        fetch(f"{server}/a", 10_000)
    assert waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_not_change_is_not_tried_again(server: str, waits: list[float], status: int) -> None:
    Handler.answers = [status, 200]
    with pytest.raises(FetchError, match=rf"/set/a: cannot be opened \(HTTP {status}"):
        fetch(f"{server}/a", 10_000)
    assert waits == []


def test_an_untrusted_server_is_not_tried_again(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(url: str, timeout: float) -> None:
        problem = ssl.SSLCertVerificationError("certificate verify failed")
        problem.verify_message = "self-signed certificate"
        raise urllib.error.URLError(problem)

    monkeypatch.setattr(download._OPENER, "open", refused)
    with pytest.raises(
        FetchError, match=r"https://host/set/a: the server is not trusted \(self-signed certificate\); .* SSL_CERT_FILE"
    ):
        fetch("https://host/set/a", 10)
    assert waits == []


def test_a_redirect_leads_from_http_to_http_and_nowhere_else(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "location", f"{server}/b")
    Handler.answers = [302, 200]
    assert fetch(f"{server}/a", 10_000) == DATA
    monkeypatch.setattr(Handler, "location", "ftp://127.0.0.1/b")
    Handler.answers = [302]
    with pytest.raises(
        FetchError, match=r"/a: cannot be opened \(it redirects to ftp://127.0.0.1/b, which is not foll"
    ):
        fetch(f"{server}/a", 10_000)


def test_https_is_not_left_by_a_redirect() -> None:
    request = urllib.request.Request("https://host/set/a")
    with pytest.raises(PermissionError, match=r"redirects to http://169\.254\.169\.254/"):
        download._NoDowngrade().redirect_request(request, None, 302, "Found", {}, "http://169.254.169.254/?key=1")


def test_no_server(waits: list[float]) -> None:
    with pytest.raises(FetchError, match="cannot be read after 6 attempts"):
        fetch("http://127.0.0.1:9/a", 10)
    assert len(waits) == 5


def test_a_file_that_is_too_large_is_left(server: str) -> None:
    Handler.answers = [200]
    with pytest.raises(ValueError, match="is larger than 100 bytes"):
        fetch(f"{server}/a", 100)


def test_fsspec_and_commands(tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "a b[1]?.bin").write_bytes(DATA)
    assert fetch(f"file://{tmp_path}/a b[1]?.bin", 10_000) == DATA
    assert fetch(f"pipe:cat '{tmp_path}/a b[1]?.bin'", 10_000) == DATA
    with pytest.raises(FetchError, match=r"gone: cannot be opened \(No such file"):
        fetch(f"file://{tmp_path}/gone", 10)
    assert waits == []


@pytest.mark.parametrize("command", ["pipe:exit 3", "pipe:printf half; exit 1"])
def test_a_command_that_fails(command: str) -> None:
    with pytest.raises(FetchError, match=r"cannot be read after 6 attempts \(the command failed\)"):
        fetch(command, 100)


def test_an_unknown_kind_of_url_and_a_package_that_is_missing(waits: list[float]) -> None:
    with pytest.raises(FetchError, match=r"nonsense://x: cannot be opened .*nonsense"):
        fetch("nonsense://x", 10)
    assert waits == []
