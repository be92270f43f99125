"""The training command, really launched: by every launcher, on 1, 2 and 4 ranks, interrupted and resumed."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from hand_made import take_digests_again
from launches import CONFIGS, command, contents, evaluate, largest_difference, run, threads_of, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import STATE_NAME, find_checkpoint, read_state
from unimmad.config import load_recipe
from unimmad.data.index import load_index
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.model.backbone import STRIDES
from unimmad.model.cross_moe import composing_is_cheaper

ONE_STEP = ("--max-steps", "1", "--set", "training.optimizer=sgd")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "synthetic"
    write_shards(synthetic_sets(train_per_class=2, normal_per_class=1, anomalous_per_class=1), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def four_steps(shards, tmp_path_factory) -> Path:
    """Four undisturbed steps of Adam, on one plain process; and the whole schedule is five."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, "--data", str(shards), "--max-steps", "4", "--profile", "2:3")
    return folder / "runs" / "tiny"


def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(shards, four_steps, tmp_path):
    train(tmp_path, "--data", str(shards), "--max-steps", "2")
    shutil.copytree(shards, tmp_path / "copy")
    said = train(tmp_path, "--data", "copy", "--max-steps", "4")
    assert "continuing" in said
    assert "at step 2" in said
    ours, theirs = weights(tmp_path / "runs" / "tiny"), weights(four_steps)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in theirs)


def test_the_log_has_gradients_speed_and_memory_and_a_trace_is_written(four_steps):
    events = EventAccumulator(str(four_steps / "tensorboard"))
    events.Reload()
    for name in ("gradient_norm", "step_seconds", "mfu", "peak_memory_gib"):
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert all(0 < point.value < 1000 for point in points), name
    with gzip.open(four_steps / "profile" / "rank-00000.json.gz", "rt") as file:
        assert "aten::convolution_backward" in {event["name"] for event in json.load(file)["traceEvents"]}


def test_resized_images_that_are_kept_change_nothing(shards, four_steps, tmp_path):
    argv = ("--set", "data.resized_cache_gb=1", "--set", f"data.cache_folder={tmp_path / 'cache'}", "--max-steps", "4")
    for number in range(2):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        train(folder, "--data", str(shards), *argv)
        ours, theirs = weights(folder / "runs" / "tiny"), weights(four_steps)
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
        assert list((tmp_path / "cache" / "resized").glob("*/*.pixels")), "the second run finds them"


@pytest.mark.parametrize("config", [pytest.param("ep1.json", marks=pytest.mark.long), "ep4.json"])
def test_activations_computed_again_change_nothing(shards, tmp_path, config):
    """On two ranks, whose BatchNorm exchanges sums while it is computed again."""
    found = []
    for again in ("false", "true"):
        folder = tmp_path / again
        folder.mkdir()
        argv = ("--data", str(shards), "--max-steps", "2", "--set", f"training.activation_checkpointing={again}")
        train(folder, *argv, launcher="deepspeed", ranks=2, config=config)
        found.append(weights(folder / "runs" / "tiny"))
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_finished_run_is_kept_and_the_next_gets_a_numbered_folder(shards, tmp_path):
    argv = ("--data", str(shards), "--set", "training.global_batch=20")
    train(tmp_path, *argv)
    state = read_state(find_checkpoint(tmp_path / "runs" / "tiny"))
    assert state["finished"]
    assert "solids/cookie" in state["trained_on"]["classes"]
    assert [modality["slot"] for modality in state["trained_on"]["datasets"]["solids"]["modalities"]] == [0, 1]
    said = train(tmp_path, *argv, "--init-from", "runs/tiny")
    assert "runs/tiny-2" in said
    assert (tmp_path / "runs" / "tiny-2" / "checkpoints" / "latest").is_file()


@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("torchrun", 2)])
def test_at_the_end_it_says_how_to_evaluate(shards, tmp_path, launcher, ranks):
    words = [*command(launcher, ranks), "--recipe", "tiny", "--data", str(shards), *ONE_STEP, "--output-dir", "my run"]
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "next: unimmad evaluate --checkpoint 'my run'"
    assert done.stdout.count("next: ") == 1


@pytest.fixture(scope="module")
def one_step(shards, tmp_path_factory):
    """One plain gradient step on one process, at rate 1 and at a rate too small to move anything."""
    runs = []
    for rate in ("1", "1e-12"):
        folder = tmp_path_factory.mktemp("one")
        train(folder, "--data", str(shards), *ONE_STEP, "--set", f"training.learning_rate={rate}")
        runs.append(weights(folder / "runs" / "tiny"))
    return runs


@pytest.mark.parametrize(("ranks", "config"), [(2, "ep4.json"), pytest.param(4, "ep1.json", marks=pytest.mark.long)])
def test_ranks_share_the_batch_and_change_nothing(ranks, config, shards, one_step, tmp_path):
    """Launched by deepspeed; ep4.json on two ranks runs with ep_size 2. The gradients are those of one process.

    Whether they are so to rounding is tests/parity's business, where ReLU is smooth; here a unit whose sign flips by
    rounding moves some gradient by a hundredth. One that a rank counts twice or not at all is off by its own size.
    """
    reference, start = one_step
    argv = ("--data", str(shards), *ONE_STEP, "--set", "training.learning_rate=1")
    said = train(tmp_path, *argv, launcher="deepspeed", ranks=ranks, config=config)
    assert said.count("checkpoint runs/tiny") == 1, "only rank 0 speaks"
    difference, name = largest_difference(weights(tmp_path / "runs" / "tiny"), reference, start)
    assert difference <= 0.03, name


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_compiled_networks_give_the_gradients_of_plain_ones_on_two_ranks(shards, one_step, tmp_path):
    """Really compiled, which takes minutes; BatchNorm's sums are exchanged from within the compiled code."""
    reference, start = one_step
    argv = ("--data", str(shards), *ONE_STEP, "--set", "training.learning_rate=1", "--set", "training.compile=true")
    train(tmp_path, *argv, launcher="deepspeed", ranks=2, config="ep4.json", seconds=1200)
    difference, name = largest_difference(weights(tmp_path / "runs" / "tiny"), reference, start)
    assert difference <= 0.03, name


def test_torchrun_and_a_checkpoint_of_another_layout(shards, tmp_path):
    """Two ranks continue what one began, Adam's moments included: a checkpoint outlives its layout."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(_made(one), "--data", str(shards), "--max-steps", "2")
    kept = _as_if_measured(find_checkpoint(one / "runs" / "tiny"))
    shutil.copytree(one, two)
    train(one, "--data", str(shards), "--max-steps", "3")
    train(two, "--data", str(shards), "--max-steps", "3", launcher="torchrun", ranks=2, config="ep4.json")
    state = read_state(find_checkpoint(two / "runs" / "tiny"))
    assert state["layout"] == {"world_size": 2, "ep_size": 2, "zero_stage": 1}
    assert state["composing"] == read_state(find_checkpoint(one / "runs" / "tiny"))["composing"] == kept
    ours, theirs = weights(two / "runs" / "tiny"), weights(one / "runs" / "tiny")
    moments = [name for name in theirs if name.startswith("optimizer/exp_avg/")]
    # Moments lost on the way would be off by most of their size, and all of them; rounding moves a few a little.
    off = [name for name in moments if (ours[name] - theirs[name]).norm() > 0.05 * theirs[name].norm()]
    assert len(off) <= 0.05 * len(moments), off


def _as_if_measured(checkpoint: Path) -> list[list[bool]]:
    """What the fixed rule chooses, put down as if a GPU had measured it."""
    model, state = load_recipe("tiny").model, read_state(checkpoint)
    sides = [model.image_size // stride for stride in STRIDES]
    state["composing"] = [
        [composing_is_cheaper(model.embed_dim, side * side, size) for size in model.kernel_sizes] for side in sides
    ]
    (checkpoint / STATE_NAME).write_text(json.dumps(state))
    take_digests_again(checkpoint)
    return state["composing"]


def test_evaluation_on_the_way_and_tensorboard(shards, tmp_path):
    """Shared out over two ranks, with loader processes; its files are those of the evaluation command alone."""
    argv = ("--data", str(shards), "--max-steps", "2", "--set", "training.evaluate_every=2")
    said = train(tmp_path, *argv, "--set", "data.workers=1", launcher="torchrun", ranks=2)
    run_folder = tmp_path / "runs" / "tiny"
    assert said.count("test split") == 1
    assert "training in fp32, no TF32 on cpu" in said
    assert "C-MoE composes kernels by the count of multiply-adds" in said
    folder = run_folder / "evaluations" / "step_00000002"
    report = json.loads((folder / "report.json").read_text())
    assert report["header"]["precision"].startswith("fp32 on cpu, no TF32; ")
    assert len(report["classes"]) == 10
    assert list((run_folder / "tensorboard").glob("events*"))
    evaluate(tmp_path, "--output-dir", "alone", "--workers", "0", threads=threads_of(2))
    found, expected = contents(folder), contents(tmp_path / "alone")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--set", "model.embed_dm=3"), "did you mean model.embed_dim?"),
        (("--recipe", "dmo"), "demo"),
        (("--data", "nowhere"), "data folder nowhere does not exist"),
        (("--deepspeed_config", "none.json"), "none.json can't be read"),
        (("--resume", "nowhere"), "nowhere is not a checkpoint"),
        (("--set", "model.backbone_weights=absent.pth"), "absent.pth does not exist"),
    ],
)
def test_bad_input_is_one_line_and_a_failing_exit(argv, said, tmp_path):
    usual = ["--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*command("python"), *usual, *argv], tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    assert said in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/checkpoints/step_*"))


def test_another_recipe_is_not_continued(shards, four_steps):
    folder = four_steps.parents[1]
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, "--data", str(shards), "--set", "model.embed_dim=32"], folder)
    assert done.returncode == 2
    assert "model.embed_dim is 16 there and 32 now" in done.stderr


def test_other_data_are_not_continued(shards, four_steps, tmp_path):
    other = tmp_path / "other"
    write_shards(synthetic_sets(train_per_class=3, normal_per_class=1, anomalous_per_class=1), other, progress=False)
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, "--data", str(other)], four_steps.parents[1])
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "step_00000004 was trained on other data: class " in last
    assert "has other training samples; give the run's own --data, another --output-dir, or --resume never" in last
    assert "Traceback" not in done.stderr


def test_evaluation_on_the_way_without_a_test_split_stops_at_the_start(tmp_path):
    sets = synthetic_sets(train_per_class=2, normal_per_class=0, anomalous_per_class=0)
    write_shards(sets, tmp_path / "set", progress=False)
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, "--data", "set", "--set", "training.evaluate_every=2"], tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: training.evaluate_every is 2, but the data have no test sample; ")
    assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_the_run_folder_stops_with_its_name(shards, tmp_path):
    (tmp_path / "taken").write_text("")
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, "--data", str(shards), "--output-dir", "taken"], tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: the run folder taken can't be written to (Not a directory); choose another")
    assert "Traceback" not in done.stderr


def test_a_cache_folder_that_cannot_be_used_stops_with_its_name(shards, tmp_path):
    (tmp_path / "file").write_text("")
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    settings = ("--set", "data.resized_cache_gb=1", "--set", "data.cache_folder=file")
    done = run([*argv, "--data", str(shards), *settings], tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: the cache of resized images file/resized can't be used")


def test_a_shard_cut_short_stops_with_its_name(shards, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in shards.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    shard = next(broken.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    argv = [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, "--data", str(broken)], tmp_path)
    assert done.returncode == 2
    assert shard.name in done.stderr


@pytest.mark.long
def test_a_corrupt_sample_stops_or_is_skipped_and_summed_up_over_ranks(shards, tmp_path):
    """Every sample of one class is corrupt."""
    shutil.copytree(shards, tmp_path / "set")
    index = load_index(tmp_path / "set")
    samples = index.classes("train")["solids/cookie"]
    for sample in samples:
        with (tmp_path / "set" / index.shards[sample.shard].name).open("r+b") as file:
            file.seek(next(iter(sample.images.values())).offset)
            file.write(b"nothing")
    argv = ("--data", "set", "--max-steps", "5", "--set", "model.backbone_weights=none")
    done = run(
        [*command("python"), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny", *argv], tmp_path
    )
    assert done.returncode == 2
    assert "does not open as PNG" in done.stderr
    said = train(tmp_path, *argv, "--on-error", "skip", launcher="torchrun", ranks=2)
    assert "samples could not be read, in 1 shards: set/train-000000.tar" in said
    assert read_state(find_checkpoint(tmp_path / "runs" / "tiny"))["step"] == 5


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
