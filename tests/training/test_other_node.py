"""What one node alone lacks is said once, with rank, host and reason, and ends the launch: by torchrun on two ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from launches import CONFIGS, SECONDS, command, environment, train

from unimmad.config import RECIPES_FOLDER
from unimmad.data.index import load_index
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards

ON_NODE_1 = Path(__file__).with_name("other_node")
FAILING_TRAIN = Path(__file__).with_name("failing_train.py")
NODE_1 = "train.py: rank 1 (node1): "


@pytest.fixture
def nodes(parity_shards, tmp_path):
    """The working folders of two nodes, alike: configuration, recipe, data."""
    for name in ("node0", "node1"):
        (tmp_path / name).mkdir()
        shutil.copytree(parity_shards, tmp_path / name / "data")
        shutil.copy(CONFIGS / "ep1.json", tmp_path / name / "ep1.json")
        shutil.copy(RECIPES_FOLDER / "tiny.yaml", tmp_path / name / "mine.yaml")
    return tmp_path / "node0", tmp_path / "node1"


def launch(nodes, *argv: str, script: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    ours = command("torchrun", 2)
    if script is not None:
        ours[-1] = script
    usual = ["--deepspeed_config", "ep1.json", "--recipe", "mine.yaml", "--data", "data"]
    around = environment()
    path = os.pathsep.join([str(ON_NODE_1), *filter(None, [around.get("PYTHONPATH")])])
    return subprocess.run(
        [*ours, *usual, *argv],
        cwd=nodes[0],
        env={**around, "PYTHONPATH": path, "TEST_OTHER_NODE": str(nodes[1]), **more},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The trainer's last words."""
    assert done.returncode != 0, done.stderr[-3000:]
    print(done.stderr)  # shown where a test fails
    return [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]


def test_data_that_one_node_lacks(nodes):
    shutil.rmtree(nodes[1] / "data")
    started = time.monotonic()
    lines = said(launch(nodes))
    assert lines == [f"{NODE_1}data folder data does not exist; make one with unimmad shards"]
    assert time.monotonic() - started < 60


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mine.yaml", "no recipe 'mine.yaml'"),
        (
            "ep1.json",
            "--deepspeed_config ep1.json can't be read: No such file or directory; "
            "give a file, or one of bf16, ep1, ep4, ep8, zero0, zero2_offload",
        ),
    ],
)
def test_a_file_that_one_node_lacks(nodes, name, line):
    (nodes[1] / name).unlink()
    lines = said(launch(nodes))
    assert len(lines) == 1
    assert lines[0].startswith(NODE_1 + line)


def other_recipe(node: Path) -> None:
    (node / "mine.yaml").write_text((node / "mine.yaml").read_text().replace("epochs: 1", "epochs: 2"))


def other_data(node: Path) -> None:
    shutil.rmtree(node / "data")
    write_shards(synthetic_sets(train_per_class=2, normal_per_class=2, anomalous_per_class=1)[:1], node / "data")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_recipe, "another recipe"),
        (other_data, "other data"),
    ],
)
def test_what_is_another_on_one_node_stops_all(nodes, change, what):
    change(nodes[1])
    (line,) = said(launch(nodes))
    assert line.startswith("train.py: rank 1 has " + what)
    assert "give all ranks the same" in line


@pytest.mark.long
def test_what_no_node_has_is_said_without_rank(nodes):
    lines = said(launch(nodes, "--data", "nowhere", "--unknown", "5"))
    assert lines == ["train.py: unrecognized arguments: --unknown 5; unimmad train --help lists the options"]


@pytest.mark.long
def test_a_checkpoint_that_one_node_lacks(nodes):
    train(nodes[0], "--data", "data", "--max-steps", "1", "--output-dir", "run")
    lines = said(launch(nodes, "--recipe", "tiny", "--output-dir", "run", "--max-steps", "2"))
    assert len(lines) == 1
    assert lines[0].startswith(f"{NODE_1}run/checkpoints/step_00000001/state.json can't be read")


@pytest.mark.long
def test_a_cache_that_one_node_cannot_write(nodes):
    (nodes[1] / "cache").write_text("")
    lines = said(launch(nodes, "--set", "data.resized_cache_gb=1", "--set", "data.cache_folder=cache"))
    assert len(lines) == 1
    assert lines[0].startswith(f"{NODE_1}the cache of resized images cache/resized can't be used (")


@pytest.mark.long
def test_a_sample_that_one_node_cannot_read_while_training(nodes):
    index = load_index(nodes[1] / "data")
    for samples in index.classes("train").values():
        for sample in samples:
            with (nodes[1] / "data" / index.shards[sample.shard].name).open("r+b") as file:
                file.seek(next(iter(sample.images.values())).offset)
                file.write(b"nothing")
    lines = said(launch(nodes, "--set", "model.backbone_weights=none"))
    told = [line for line in lines if "lost another rank" not in line]
    assert len(told) == 1
    assert told[0].startswith(NODE_1)
    assert "does not open as PNG" in told[0]


@pytest.mark.long
def test_ranks_that_a_failed_one_leaves_waiting_end_at_once(nodes):
    """As on GPUs, where they wait in a kernel; the launcher would kill them after 30 s only."""
    started = time.monotonic()
    done = launch(nodes, script=str(FAILING_TRAIN), FAILING_RANK="1", WAITING_RANK="0")
    ended = time.time()
    assert "failing_train.py: rank 1 (node1) failed: RuntimeError('the fault of the test')" in done.stderr
    failed = json.loads((nodes[1] / "failed.json").read_text())
    assert ended - failed < 15, time.monotonic() - started
