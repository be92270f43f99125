"""Pages as people see them: in headless Chromium, opened from files without network, or used on a local server."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

_PROBE = """
<script>
onload = () => {
  const pictures = [...document.images].map(
    image => [image.getAttribute("src"), image.naturalWidth, image.naturalHeight]);
  const anchors = [...document.querySelectorAll("a[href^='#']")].map(anchor => {
    anchor.click();
    const target = document.getElementById(decodeURIComponent(anchor.hash.slice(1)));
    const top = target ? target.getBoundingClientRect().top : NaN;
    return [anchor.hash, -1 <= top && top < innerHeight];
  });
  const wide = document.documentElement.scrollWidth - innerWidth;
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({pictures, anchors, wide, text: document.body.innerText});
  document.body.append(probe);
};
</script>
"""
_FOUND = re.compile(r'<pre id="probe">(.*?)</pre>', re.DOTALL)
_CONSOLE = re.compile(r":CONSOLE[:(].*")


@dataclass(frozen=True)
class Shown:
    """A page that was opened."""

    pictures: dict[str, tuple[int, int]]
    """Width and height of each picture as it was decoded, 0 where it was not, by its place beside the page."""
    anchors: dict[str, bool]
    """Whether following a link within the page brings its target into sight."""
    text: str
    """What is to be read on it."""
    console: list[str]
    """What the browser had to say."""
    wide: int
    """CSS pixels by which it is wider than the window."""


def shown(page: Path, folder: Path) -> Shown:
    """Open a page, load its pictures and follow its links; ``folder`` is for the browser's own files."""
    probe = page.with_name(f"probe-{page.name}")
    probe.write_text(page.read_text().replace(' loading="lazy"', "") + _PROBE)  # else pictures below wait
    try:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
        quiet = ["--enable-logging=stderr", f"--user-data-dir={folder / 'browser'}"]
        command = [str(CHROMIUM), *options, *quiet, "--dump-dom", probe.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        probe.unlink()
    (found,) = _FOUND.findall(done.stdout)
    values = json.loads(unescape(found))
    return Shown(
        pictures={unquote(name): (width, height) for name, width, height in values["pictures"]},
        anchors=dict(values["anchors"]),
        text=values["text"],
        console=_CONSOLE.findall(done.stderr),
        wide=values["wide"],
    )


_AT_3_AND_4 = "import os, sys; [os.dup2(int(sys.argv[n]), n + 2) for n in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
"""Where the browser's debugging pipe has its ends."""


class Driven:
    """A page of a local server in headless Chromium, with keys and a mouse, over the browser's debugging pipe."""

    def __init__(self, url: str, folder: Path) -> None:
        """``folder`` is for the browser's own files."""
        to_browser, from_browser = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"]
        command = [str(CHROMIUM), *options, f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]
        began = [sys.executable, "-c", _AT_3_AND_4, *map(str, ends), *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._browser = subprocess.Popen(began, pass_fds=ends, **quiet)
        for end in (*ends, to_browser[0], from_browser[1]):
            os.close(end)
        self._out, self._in = open(to_browser[1], "wb"), open(from_browser[0], "rb")  # noqa: SIM115 (closed by __exit__)
        self._number, self._session, self._rest = 0, {}, b""
        self.asked_for: list[str] = []
        """Every address that the page asked for."""
        self.said: list[str] = []
        """What the browser had to say: errors, and what the page may not do."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Page.navigate", url=url)
        self.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.terminate()
        self._browser.wait(30)
        self._out.close()
        self._in.close()

    def value(self, expression: str) -> object:
        """What an expression of the page comes to."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        """Until an expression of the page is true."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression}\n{self.value('document.body.innerText')}\n{self.said}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, as a person presses it."""
        text = {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        """The mouse's left button in the middle of an element."""
        box = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({_element(selector)})"
        x, y = self.value(box)  # type: ignore[misc]
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: object) -> dict:
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._out.write(json.dumps(asked).encode() + b"\0")
        self._out.flush()
        while True:
            said = self._next()
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                return said["result"]
            self._event(said)

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            read = os.read(self._in.fileno(), 2**16)
            assert read, "the browser has ended"
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _event(self, said: dict) -> None:
        values = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.asked_for.append(values["request"]["url"])
        elif said.get("method") == "Log.entryAdded":
            self.said.append(values["entry"]["text"])
        elif said.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(values["exceptionDetails"]))


def _element(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
