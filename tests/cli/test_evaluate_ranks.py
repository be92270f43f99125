"""The evaluation command started by torchrun and deepspeed: every file as from one process, to the last bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards
from launches import EVALUATE, ROOT, command, contents, evaluate, run, threads_of

from unimmad.config import load_recipe
from unimmad.data.index import load_index

DYING = Path(__file__).with_name("dying_evaluate.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Four classes of three test images, two a batch, so of two batches each; a calibration image of each class."""
    folder = tmp_path_factory.mktemp("work")
    hand_made_shards(folder / "data" / "small", ["solids", "brains"])
    index = json.loads((folder / "data" / "small" / "index.json").read_text())
    for sample in index["samples"]:
        if sample["split"] == "train" and sample["key"].endswith("1"):
            sample["split"] = "calibration"
    (folder / "data" / "small" / "index.json").write_text(json.dumps(index))
    hand_made_checkpoint(
        folder / "runs" / "tiny", load_recipe("tiny", ["evaluation.batch_size=2"]), [Path("data/small")]
    )
    return folder


def spoil(folder: Path, class_name: str, place: int) -> str:
    """Make a test image unreadable; returns its shard's name."""
    index = load_index(folder)
    sample = index.classes("test")[class_name][place]
    with (folder / index.shards[sample.shard].name).open("r+b") as file:
        file.seek(next(iter(sample.images.values())).offset)
        file.write(b"nothing")
    return index.shards[sample.shard].name


def assert_same_files(folder: Path, ours: str, theirs: str) -> None:
    found, expected = contents(folder / ours), contents(folder / theirs)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(json.loads(expected["report.json"])["classes"]) == 4


def test_three_ranks_write_what_one_writes(trained, tmp_path):
    """More ranks than a class has batches, loader processes, and a last round that is not full."""
    folder = shutil.copytree(trained, tmp_path / "work")
    evaluate(folder, "--output-dir", "one", "--workers", "0", threads=threads_of(3))
    said = evaluate(folder, "--output-dir", "three", "--workers", "1", launcher="torchrun", ranks=3)
    assert said.count("page     three/report.html") == 1, "only rank 0 speaks"
    assert_same_files(folder, "three", "one")


def test_an_error_of_one_rank_ends_all_with_its_reason(trained, tmp_path):
    """The second batch of the first class is rank 1's."""
    folder = shutil.copytree(trained, tmp_path / "work")
    shard = spoil(folder / "data" / "small", "solids/cookie", 2)
    done = run([*command("torchrun", 2, EVALUATE), "--output-dir", "two", "--workers", "0"], folder, seconds=120)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("evaluate.py: ")]
    assert len(said) == 1, done.stderr
    assert re.match(rf"evaluate\.py: rank 1 \(\S+\): data/small/{re.escape(shard)}: solids/", said[0])
    assert "does not open as PNG" in said[0]
    assert not (folder / "two" / "report.json").exists()


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "ranks"), [("deepspeed", 2), ("torchrun", 5)])
def test_every_launcher_and_ranks_without_a_class(trained, tmp_path, launcher, ranks):
    folder = shutil.copytree(trained, tmp_path / "work")
    evaluate(folder, "--output-dir", "one", threads=threads_of(ranks))
    evaluate(folder, "--output-dir", "many", "--scratch-dir", "spilled", launcher=launcher, ranks=ranks)
    assert_same_files(folder, "many", "one")


@pytest.mark.long
def test_each_modality(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "work")
    argv = ("--modalities", "each", "--workers", "0")
    evaluate(folder, *argv, "--output-dir", "one", threads=threads_of(2))
    evaluate(folder, *argv, "--output-dir", "two", launcher="torchrun", ranks=2)
    assert "modalities/modalities.csv" in contents(folder / "two")
    assert_same_files(folder, "two", "one")


@pytest.mark.long
def test_left_out_samples_are_summed_up_over_ranks(trained, tmp_path):
    """A batch and a class that lose all their samples, too."""
    folder = shutil.copytree(trained, tmp_path / "work")
    for class_name, place in [("solids/cookie", 2), *(("brains/brain_upper", place) for place in range(3))]:
        spoil(folder / "data" / "small", class_name, place)
    argv = ("--on-error", "skip", "--workers", "1")
    evaluate(folder, *argv, "--output-dir", "one", threads=threads_of(3))
    evaluate(folder, *argv, "--output-dir", "three", launcher="torchrun", ranks=3)
    found, expected = contents(folder / "three"), contents(folder / "one")
    assert found == expected
    report = json.loads(expected["report.json"])
    assert report["header"]["left out"].startswith("4 samples could not be read")
    assert [entry["class"] for entry in report["classes"]] == ["cookie", "rope", "brain_ventricles"]


@pytest.mark.long
def test_thresholds(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "work")
    thresholds = folder / "runs" / "tiny" / "checkpoints" / "step_00000003" / "thresholds.json"
    found = []
    for launcher, ranks in (("python", 1), ("torchrun", 2)):
        said = evaluate(folder, "--calibrate", launcher=launcher, ranks=ranks, threads=threads_of(2))
        assert said.count("thresholds runs/tiny") == 1
        found.append(thresholds.read_bytes())
        thresholds.unlink()
    assert found[0] == found[1]


@pytest.mark.long
def test_killed_it_goes_on_behind_the_last_finished_class(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "work")
    evaluate(folder, "--output-dir", "one", "--workers", "0", threads=threads_of(2))
    argv = ["--output-dir", "two", "--workers", "0"]
    done = run([*command("torchrun", 2, DYING), *argv], folder, seconds=120)
    assert done.returncode != 0
    assert str(ROOT / "unimmad") not in done.stderr, "no traceback but torchrun's own"
    assert len(list((folder / "two" / ".partial").glob("*.json"))) == 2
    said = evaluate(folder, *argv, launcher="torchrun", ranks=2)
    assert "2 of 4 classes were finished by an interrupted evaluation: solids/cookie, solids/rope" in said
    assert_same_files(folder, "two", "one")
