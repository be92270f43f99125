import importlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from data.disk_sets import make_manifest, make_mmad_index, make_mvtec, make_visa, rgb, save
from data.every_layout import COPIES, OPTIONS, make_copy
from PIL import Image

from unimmad.data import synthetic
from unimmad.data.index import load_index
from unimmad.data.layouts import LAYOUTS, FoundSet

SCRIPT = Path(__file__).parents[2] / "tools" / "make_shards.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return importlib.import_module("unimmad.cli.shards")


@pytest.fixture
def road(tmp_path: Path) -> Path:
    for number, part in enumerate(("train/good", "test/good", "test/hole")):
        for modality, array in (
            ("rgb", np.full((8, 8, 3), number, dtype=np.uint8)),
            ("disparity", np.full((8, 8), 900, dtype=np.uint16)),
        ):
            folder = tmp_path / "road" / "asphalt" / part / modality
            folder.mkdir(parents=True)
            Image.fromarray(array).save(folder / "000.png")
    return tmp_path / "road"


def test_writes_and_summarises(tool: ModuleType, road: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = road.parent / "shards"
    options = ["--target", str(target), "--name", "street", "--domain", "traffic"]
    assert tool.main([str(road), *options, "--modality", "disparity=depth:2:900"]) == 0
    entry = load_index(target).datasets["street"]
    assert entry.field == "traffic"
    assert [(m.name, m.slot, m.scale, m.invalid) for m in entry.modalities] == [
        ("rgb", 0, 1.0, None),
        ("disparity", 1, 2.0, 900.0),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert "street (domain: traffic)" in lines
    assert "  class asphalt: 1 train, 2 test" in lines
    assert any(line.startswith("note: ") and "without a mask" in line for line in lines)
    assert lines[-1] == f"next: unimmad train --recipe drawn_search --data {target}"


def test_the_synthetic_set_is_written_by_workers_as_without(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    few = partial(synthetic.synthetic_sets, train_per_class=1, normal_per_class=1, anomalous_per_class=1)
    monkeypatch.setattr(synthetic, "synthetic_sets", few)
    for workers in ("0", "2"):
        assert tool.main(["synthetic", "--target", str(tmp_path / workers), "--workers", workers]) == 0
    assert load_index(tmp_path / "2") == load_index(tmp_path / "0")


def test_sets_a_share_aside(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        save(make_mvtec(tmp_path / "parts") / "bolt/train/good" / f"more{number}.png", rgb(number))
    target, aside = tmp_path / "shards", []
    for options in (["--calibration-fraction", "0"], [], ["--calibration-fraction", "0.5"]):
        assert tool.main([str(tmp_path / "parts"), "--target", str(target), "--overwrite", *options]) == 0
        splits = Counter(sample.split for sample in load_index(target).samples)
        assert (splits["train"] + splits["calibration"], splits["test"]) == (13, 3)
        aside.append(splits["calibration"])
        of_class = f"  class bolt: {splits['train']} train, 3 test"
        of_class += f", {aside[-1]} calibration" if aside[-1] else ""
        assert of_class in capsys.readouterr().out.splitlines()
    assert aside[0] == 0 < aside[1] < 5 < aside[2] + 1


def test_several_sources_of_several_layouts(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [make_visa(tmp_path / "v"), make_mmad_index(tmp_path / "m"), make_manifest(tmp_path / "t")]
    target = tmp_path / "shards"
    assert tool.main([*map(str, sources), "--target", str(target)]) == 0
    index = load_index(target)
    fields = {name: entry.field for name, entry in index.datasets.items()}
    assert fields == {
        "visa": "industry",
        "mvtec_3d": "industry",
        "brats": "medicine",
        "eyecandies": "industry",
        "cloths": "unspecified",
    }
    aside = {sample.dataset for sample in index.samples if sample.split == "calibration"}
    assert aside == {"cloths"}
    assert "note: " in capsys.readouterr().out


@pytest.mark.parametrize("layout", COPIES)
def test_every_layout_is_written_and_verified(
    layout: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make_copy(layout, tmp_path / "sources"), tmp_path / "shards"
    options = [word for text in OPTIONS.get(layout, ()) for word in ("--modality", text)]
    assert tool.main([str(source), "--target", str(target), *options]) == 0
    benchmark = bool(LAYOUTS[layout].info.classes)
    assert (list(load_index(target).datasets) == [layout]) == benchmark
    assert tool.main(["verify", str(target)]) == 0
    assert "is as the index says" in capsys.readouterr().out


def test_there_is_a_copy_of_every_layout() -> None:
    assert list(COPIES) == list(LAYOUTS)


def test_lists_layouts(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--list"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layout", "classes", "modalities", "domain", "citation"]
    assert [line.split()[0] for line in lines[1:-1]] == list(LAYOUTS)
    assert lines[-1].startswith("139 classes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modality", "rgb=blue"], "--modality rgb=blue"),
        (["--modality", "ir=gray"], "has only disparity, rgb"),
        (["--shard-mb", "0"], "must be a finite number above 0"),
        (["--shard-mb", "inf"], "must be a finite number above 0"),
        (["elsewhere"], "elsewhere does not exist"),
        (["elsewhere", "--name", "x"], "one SOURCE"),
        (["--calibration-fraction", "1"], "calibration share 1: give 0 or more and less than 1"),
        (["--layout", "visa"], "1cls.csv: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tool: ModuleType, road: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert tool.main([str(road), "--target", str(road.parent / "shards"), *options]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (road.parent / "shards").exists()


def test_as_a_command(road: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(road), "--target", str(road.parent / "shards")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    again = subprocess.run(command, capture_output=True, check=False, text=True)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr


def killed() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_worker_that_is_killed_is_one_line_and_leaves_nothing(
    tool: ModuleType, road: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find_sets = tool.find_sets

    def with_a_deadly_image(*words: object, **options: object) -> list[FoundSet]:
        [found] = find_sets(*words, **options)
        first, *others = found.source.samples
        images = {name: replace(file, read=killed) for name, file in first.images.items()}
        return [replace(found, source=replace(found.source, samples=(replace(first, images=images), *others)))]

    monkeypatch.setattr(tool, "find_sets", with_a_deadly_image)
    assert tool.main([str(road), "--target", str(road.parent / "shards"), "--workers", "2"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert re.search(
        r"(exited unexpectedly|is gone .*): the process was killed, most often for want of memory.* 0 workers", line
    )
    assert sorted(path.name for path in road.parent.iterdir()) == ["road"]


def test_verify_says_what_is_wrong_and_ends_with_2(
    tool: ModuleType, road: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = road.parent / "shards"
    assert tool.main([str(road), "--target", str(target), "--workers", "2"]) == 0
    assert tool.main(["verify", str(target)]) == 0
    assert "is as the index says" in capsys.readouterr().out
    shard = target / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert tool.main(["verify", str(target), str(road)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [" verify: " in line for line in lines] == [True, True]
    assert "train-000000.tar: has" in lines[0]
    assert "holds no index.json" in lines[1]
