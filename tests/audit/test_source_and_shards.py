"""An audit of a source and one of its shards say the same, also where values mean what all training images tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit.made import part, square_mask, told
from data.disk_sets import save
from numpy.typing import NDArray

from unimmad.audit.run import Audited, audit
from unimmad.audit.samples import AuditSample, samples_of_sets, samples_of_shards
from unimmad.data.index import DatasetEntry
from unimmad.data.layouts import find_set
from unimmad.data.modality import parse_modality
from unimmad.data.writing.shards import write_shards

Stored = Callable[[NDArray[np.uint8]], NDArray]
"""What a sensor makes of a gray picture."""


def depth(gray_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Metres: half a metre away, 20 mm deep."""
    return 0.5 + gray_HW / 255 * 0.02


def with_hole(gray_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    stored_HW = depth(gray_HW).astype(np.float32)
    stored_HW[:6] = 0
    return stored_HW


KINDS: dict[str, tuple[str, str, Stored]] = {
    "12 bits in 16": ("gray", "gray", lambda gray: gray.astype(np.uint16) * 16),
    "reals to 0.001": ("gray", "gray", lambda gray: (gray / 255e3).astype(np.float32)),
    "millimetres": ("depth", "depth:mm", lambda gray: np.rint(depth(gray) * 1000).astype(np.uint16)),
    "metres with zeros": ("depth", "depth", with_hole),
    "disparity": ("depth", "depth:disparity", lambda gray: (54 / depth(gray)).astype(np.float32)),
    "too deep": ("depth", "depth", lambda gray: (depth(gray) * 1e4).astype(np.float32)),
}


def make(root: Path, folder: str, stored: Stored) -> Path:
    """Colour and one other sensor; the latter of one test image is shifted, and two training images are one."""
    for place, count in (("train/good", 12), ("test/good", 2), ("test/hole", 2)):
        for number in range(count):
            image = part(number + (0 if place == "train/good" else 50 if place == "test/good" else 90))
            if place == "test/hole":
                image[20:26, 20:26] = 5
                save(root / "part" / place / "gt" / f"{number}.png", square_mask(20, 20, 6))
            save(root / "part" / place / "rgb" / f"{number}.png", image)
            gray = np.roll(image[:, :, 0], 9 if (place, number) == ("test/good", 1) else 0, axis=1)
            save(root / "part" / place / folder / f"{number}.npy", stored(gray))
    for name, suffix in (("rgb", ".png"), (folder, ".npy")):
        (root / "part/train/good" / name / f"3{suffix}").write_bytes(
            (root / "part/train/good" / name / f"2{suffix}").read_bytes()
        )
    return root


def said(samples: list[AuditSample]) -> tuple[list[Any], list[DatasetEntry], Audited]:
    found = audit(samples, image_size=48, show_progress=False)
    lines = [(one.severity, one.check, one.where, one.what, one.advice, one.count) for one in found.findings]
    return lines, list({sample.dataset: sample.entry for sample in samples}.values()), found


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_judged_as_its_shards_are(tmp_path: Path, kind: str) -> None:
    name, choice, stored = KINDS[kind]
    root = make(tmp_path / "raw", name, stored)
    found = find_set(root, modalities=[parse_modality(f"{name}={choice}")], calibration_fraction=0.2)
    write_shards([found.source], tmp_path / "shards", progress=False)
    of_source, entries, audited = said(samples_of_sets([found.source], show_progress=False))
    of_shards, written, _ = said(samples_of_shards([tmp_path / "shards"]))
    assert entries == written
    assert of_source == of_shards
    assert [one.modality for one in audited.duplicates if one.exact]
    assert not told(audited, "values")
    assert bool(told(audited, "depth")) == (kind == "too deep")


def test_what_shards_would_leave_out_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "raw", "depth", lambda gray: np.rint(depth(gray) * 1000).astype(np.uint16))
    other = save(root / "part/test/good/depth/0.npy", depth(part(50)[:, :, 0]).astype(np.float32))
    found = find_set(root, modalities=[parse_modality("depth=depth:0.5")])
    [unreadable] = told(said(samples_of_sets([found.source], show_progress=False))[2], "unreadable")
    assert unreadable.count == 1
    assert unreadable.files[0].startswith(f"{other}: depth values are float32, but uint16 in training")
