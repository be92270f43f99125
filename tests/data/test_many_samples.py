"""Datasets of many samples, classes, notices and workers: time and memory grow no faster than they do."""

import os
import pickle
import pty
import resource
import shutil
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from disk_sets import mask, rgb, save

from unimmad.data.index import load_index
from unimmad.data.layouts.calibration import set_aside
from unimmad.data.layouts.scan import Notices, unique_keys
from unimmad.data.layouts.source_set import SourceSample
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import training_batches
from unimmad.data.reading.worker_pool import Pipeline

SCRIPT = Path(__file__).parents[2] / "tools" / "make_shards.py"
SAMPLE = SourceSample(key="x-train-good-_", class_name="x", split="train", defect="good", images={}, mask=None)


def cpu_seconds(started: float) -> float:
    return time.process_time() - started


def test_names_that_become_one_key_are_numbered_in_linear_time() -> None:
    """File names without any Latin letter or digit do."""
    count = 20_000
    started = time.process_time()
    keys = [sample.key for sample in unique_keys([SAMPLE] * count)]
    assert cpu_seconds(started) < 2
    assert keys == ["x-train-good-_", *(f"x-train-good-_-{number}" for number in range(2, count + 1))]


def test_numbered_keys_stay_distinct_from_names_that_look_like_them() -> None:
    keys = ["a", "a-2", "a", "a", "a-2", "a-3"]
    numbered = [sample.key for sample in unique_keys(replace(SAMPLE, key=key) for key in keys)]
    assert numbered == ["a", "a-2", "a-3", "a-4", "a-2-2", "a-3-2"]


def test_many_notices_are_collected_in_linear_time() -> None:
    notices, count = Notices(), 40_000
    started = time.process_time()
    for number in (*range(count), *range(count)):
        notices.add(f"/some/folder/of/images/{number:08d}: left out")
    assert cpu_seconds(started) < 2
    assert len(notices.lines) == count


def test_calibration_samples_of_many_classes_are_chosen_in_linear_time() -> None:
    samples = [replace(SAMPLE, key=f"{name}-{n}", class_name=f"{name}") for name in range(8000) for n in range(5)]
    started = time.process_time()
    chosen = set_aside(samples, 0.05, 0)
    assert cpu_seconds(started) < 2
    assert 0.04 < sum(sample.split == "calibration" for sample in chosen) / len(samples) < 0.06


class _Counted:
    pickled = 0

    def __call__(self) -> Iterator[int]:
        return iter(())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        _Counted.pickled += 1
        return _Counted, ()


def test_what_workers_read_by_is_pickled_once_for_all_of_them() -> None:
    _Counted.pickled = 0
    pipeline = Pipeline(_Counted())
    copies = [pickle.loads(pickle.dumps(pipeline)) for _ in range(64)]
    assert _Counted.pickled == 1
    assert all(isinstance(copy.pipeline[0], _Counted) for copy in copies)


def make_folder(root: Path, classes: int, images: int) -> Path:
    """``images`` of 8 x 8 pixels in each class: four fifths to train on, the others to test with, half of them bent."""
    save(root.with_name("image.png"), rgb(0, 8, 8))
    save(root.with_name("mask.png"), mask(8, 8))
    image, marked = root.with_name("image.png").read_bytes(), root.with_name("mask.png").read_bytes()
    for number in range(classes):
        parts = {name: root / f"c{number:03d}" / name for name in ("train/good", "test/good", "test/bent")}
        masks = root / f"c{number:03d}" / "ground_truth" / "bent"
        for folder in (*parts.values(), masks):
            folder.mkdir(parents=True)
        for place in range(images):
            part = "train/good" if place % 5 < 4 else "test/good" if place % 2 else "test/bent"
            (parts[part] / f"{place:06d}.png").write_bytes(image)
            if part == "test/bent":
                (masks / f"{place:06d}.png").write_bytes(marked)
    return root


def run_tool(*words: object) -> tuple[float, float, str]:
    """CPU seconds, peak MB, and what was printed; stderr is a terminal of 80 columns."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (25, 80))
    shown: list[bytes] = []
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], stdout=subprocess.PIPE, stderr=side
    ) as process:
        os.close(side)
        reader = threading.Thread(target=_read_all, args=(terminal, shown))
        reader.start()
        assert process.stdout is not None
        out = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
    assert process.returncode == 0, b"".join(shown).decode()
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out + b"".join(shown).decode()


def _read_all(terminal: int, shown: list[bytes]) -> None:
    try:
        while data := os.read(terminal, 65536):
            shown.append(data)
    except OSError:  # the other side is closed
        os.close(terminal)


def test_progress_is_shown_whatever_the_length_of_the_path(tmp_path: Path) -> None:
    source = make_folder(tmp_path / ("long" * 20) / "parts", 1, 10)
    target = tmp_path / ("long" * 20) / "shards"
    assert "10/10" in run_tool(source, "--target", target, "--allow-duplicates")[2]
    assert "100%" in run_tool("verify", target)[2]


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """What lies there goes at once: pytest would keep hundreds of thousands of files."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("classes", [1, 200], ids=["flat", "nested"])
def test_a_folder_of_100_000_files(classes: int, roomy: Path) -> None:
    """Time is linear; memory is some kilobytes a sample; progress shows how far it is."""
    small, large = 10_000, 100_000
    for count in (small, large):
        make_folder(roomy / f"{count}", classes, count // classes)
    few, many = (
        run_tool(roomy / f"{count}", "--target", roomy / f"s{count}", "--allow-duplicates") for count in (small, large)
    )
    assert f"{large} samples" in many[2]
    assert f"{large}/{large}" in many[2], many[2]
    assert many[0] < 1.5 * few[0] * large / small
    assert many[1] < 1200
    assert len(load_index(roomy / f"s{large}").samples) == large
    verified = run_tool("verify", roomy / f"s{large}")
    assert "every shard, sample and member is as the index says" in verified[2]
    assert verified[1] < 1200


@pytest.mark.long
def test_64_workers_give_the_batches_in_order(tmp_path: Path) -> None:
    make_folder(tmp_path / "parts", 1, 1000)
    run_tool(tmp_path / "parts", "--target", tmp_path / "shards", "--allow-duplicates")
    shards = ShardSet.open([tmp_path / "shards"])
    order = TrainingOrder(shards.classes("train"), lambda ref: ref.entry.shard, seed=0, batch=4)
    keys = {
        workers: [
            [sample.key for sample in batch.samples]
            for _, batch in training_batches(
                shards, order, image_size=16, rank=0, world_size=1, workers=workers, start_step=0, end_step=200
            )
        ]
        for workers in (0, 64)
    }
    assert keys[64] == keys[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 < 2000
