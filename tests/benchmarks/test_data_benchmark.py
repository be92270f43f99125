"""The benchmark of reading: its contestants make the same input, and its table has every row."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_shards

from benchmarks import data as benchmark
from benchmarks.data import PlainDataset, Task, contestants
from benchmarks.members import source_files

BATCH, SIZE, STEPS = 3, 32, 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_made_shards(tmp_path_factory.mktemp("benchmark") / "set", ["brains", "solids"])


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(words)


def test_all_make_the_same_input(shards: Path, tmp_path: Path) -> None:
    task = Task.of([shards], BATCH, SIZE, STEPS)
    plain = PlainDataset(source_files(task.shards, task.refs, tmp_path / "files"), SIZE)
    assert len(plain) == BATCH * STEPS
    kept = Task.of([shards], BATCH, SIZE, STEPS, tmp_path / "kept")
    racing = contestants(task, kept, plain)
    *others, ours = racing
    assert ours == "the stream, resized images kept"
    expected_TCHW = torch.cat(list(racing[ours]()))
    assert expected_TCHW.shape[1:] == (3, SIZE, SIZE)
    assert len(expected_TCHW) > len(plain), "some samples have several modalities"
    for name in others[1:]:
        made = torch.cat([images_MCHW.clone() for images_MCHW in racing[name]()])
        assert torch.equal(made, expected_TCHW), name
    decoded = [array for of_sample in racing[others[0]]() for array in of_sample]
    assert len(decoded) == len(expected_TCHW)


def test_the_table_has_every_row_and_memory_stays(shards: Path) -> None:
    words = ("--data", str(shards), "--image-size", str(SIZE), "--batch", str(BATCH), "--steps", "2", "--rounds", "1")
    table = benchmark.run(options(*words, "--workers", "1", "--memory-samples", "200"))
    rates = re.findall(r"^\| ([^|]+?) +\| +\d+ \| +(\d+\.\d\d) \| +(\d+\.\d\d) \|$", table, re.MULTILINE)
    assert [name for name, _, _ in rates] == list(RATES)
    assert rates[-2][1] == rates[-1][2] == "1.00"
    assert re.search(r"^\| 1 loader processes +\| first batch", table, re.MULTILINE)
    memory = re.search(r"after 20 samples: (\d+) MiB, 100 samples: \d+ MiB, 200 samples: (\d+) MiB$", table)
    assert memory
    assert int(memory[2]) - int(memory[1]) < 50


RATES = (
    "decoding alone",
    "decoding, resizing, normalising alone",
    "plain Dataset over the files",
    "the stream",
    "the stream, resized images kept",
)


def test_too_small_numbers(shards: Path) -> None:
    with pytest.raises(ValueError, match="2 or more --steps"):
        benchmark.run(options("--data", str(shards), "--steps", "1"))
