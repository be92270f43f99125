"""Pages opened in a real browser: pictures load in their sizes, links lead somewhere, the console is silent."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from audit.made import part
from browser import Shown, needs_browser, shown
from data.disk_sets import save
from hand_made import hand_made_checkpoint
from PIL import Image

from unimmad.cli.audit import main as audit
from unimmad.cli.evaluate import main as evaluate
from unimmad.cli.predict import main as predict
from unimmad.config import load_recipe
from unimmad.data.layouts import find_set
from unimmad.data.writing.shards import write_shards

pytestmark = needs_browser
ON_ITS_SIDE = 6
"""EXIF: stored rows are the picture's columns, from right to left."""
WIDE, TALL = 600, 400
"""Pixels as stored; upright pictures are ``TALL`` wide and ``WIDE`` tall."""


def photograph(path: Path, seed: int, spot: bool = False) -> np.ndarray:
    """Store a picture as a camera held upright does; the picture itself, with a spot near its upper left corner."""
    upright = np.asarray(Image.fromarray(part(seed)).resize((TALL, WIDE))).copy()
    if spot:
        upright[30:60, 20:50] = (250, 5, 250)
    stored = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = ON_ITS_SIDE
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, exif=exif, quality=90)
    assert stored.size == (WIDE, TALL)
    return upright


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs") / "raw & <b>"
    folder = root / "a part #1"
    for number in range(6):
        photograph(folder / "train/good" / f"{number}.jpg", number)
    for number in range(2):
        photograph(folder / "test/good" / f"{number}.jpg", number)  # trained on
        photograph(folder / "test/spot" / f"{number}.jpg", 50 + number, spot=True)
        mask = np.zeros((WIDE, TALL), np.uint8)
        mask[30:60, 20:50] = 255
        save(folder / "ground_truth/spot" / f"{number}_mask.png", mask)
    return root


def check(page: Path, found: Shown) -> None:
    """All pictures that the page links are there and were loaded whole; nothing was complained of."""
    assert found.console == []
    assert found.pictures
    for name, size in found.pictures.items():
        with Image.open(page.parent / name) as picture:
            assert picture.size == size
    assert all(found.anchors.values())
    assert found.wide <= 0


def test_an_audits_page(photographs: Path, tmp_path: Path) -> None:
    assert audit([str(photographs), "--output-dir", str(tmp_path / "a"), "--no-features"]) == 3
    found = shown(tmp_path / "a/audit.html", tmp_path)
    check(tmp_path / "a/audit.html", found)
    names = {Path(name).name for name in found.pictures}
    assert names == {"values.png", "small-defects.png", "duplicates.png"}
    assert "error · duplicates · raw & <b>" in found.text
    assert "pairs of images that are the same in training and test: 2" in found.text
    assert "10 of 10 images are stored turned (EXIF orientation 6)" in found.text
    assert "400 x 600" in found.text


def test_a_report_and_predictions_of_photographs_held_upright(photographs: Path, tmp_path: Path) -> None:
    sets = [find_set(photographs, name="photos").source]
    write_shards(sets, tmp_path / "shards", progress=False, allow_duplicates=True)
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [tmp_path / "shards"])
    output = tmp_path / "report"
    words = ["--checkpoint", str(checkpoint), "--data", str(tmp_path / "shards"), "--device", "cpu"]
    assert evaluate([*words, "--output-dir", str(output)]) in (None, 0)
    found = shown(output / "report.html", tmp_path)
    check(output / "report.html", found)
    assert found.anchors
    assert "up to 9.4 times (400 x 600)" in found.text

    files = [str(photographs / "a part #1/test/spot" / f"{number}.jpg") for number in range(2)]
    words = ["--checkpoint", str(checkpoint), "--device", "cpu", "--maps", "--output-dir", str(tmp_path / "predicted")]
    assert predict([*files, *words]) in (None, 0)
    pictures = sorted((tmp_path / "predicted").rglob("*.png"))
    maps = sorted((tmp_path / "predicted/maps").glob("*.npy"))
    assert [np.load(file).shape for file in maps] == [(WIDE, TALL)] * 2
    page = tmp_path / "predicted" / "page.html"
    links = "".join(f'<img src="{quote(str(file.relative_to(page.parent)))}" width="100">' for file in pictures)
    page.write_text(f"<!doctype html><title>predicted</title>{links}")
    found = shown(page, tmp_path)
    check(page, found)
    assert len(found.pictures) == 2
    for file in pictures:
        with Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB")).astype(int)
        rows, columns = np.nonzero((pixels[:, :, 0] > 200) & (pixels[:, :, 1] < 70) & (pixels[:, :, 2] > 200))
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert abs(height - width) <= 1, "the spot is a square, as in the photograph"
        assert columns.max() < 50
