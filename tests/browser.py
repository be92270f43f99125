"""Pages as people see them: opened in headless Chromium from their files, without network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
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
