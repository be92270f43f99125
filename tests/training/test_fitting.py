"""A method that is fitted, by the commands for methods that are trained: on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards
from launches import command, evaluate, run, weights

from unimmad import Detector
from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.cli import calibrate, export
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.methods.memory_bank import MemoryBank
from unimmad.parallel.world import World
from unimmad.report.comparison import read_report
from unimmad.training.arguments import parse_arguments
from unimmad.training.run import train

SMALL = [
    *("--recipe", "memory_bank", "--set", "model.backbone=resnet18", "--set", "model.backbone_weights=none"),
    *("--set", "model.image_size=64", "--set", "model.patch_dim=64", "--set", "model.layer_dim=64"),
    *("--set", "data.workers=0", "--set", "evaluation.batch_size=2"),
]
ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """cookie and rope, of rgb and depth; one of their three training images is set aside."""
    folder = hand_made_shards(tmp_path_factory.mktemp("shards") / "set", ["solids"])
    index = json.loads((folder / "index.json").read_text())
    kept = next(sample for sample in index["samples"] if sample["split"] == "train")
    for sample in index["samples"]:
        if sample["split"] == "train" and sample["class_name"] != kept["class_name"] and sample["key"].endswith("1"):
            sample["split"] = "calibration"
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, shards) -> dict[int, Path]:
    """Runs by the number of ranks that fitted."""
    runs = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        words = command("python" if ranks == 1 else "torchrun", ranks)
        done = run([*words, *SMALL, "--data", str(shards), "--output-dir", "run"], folder, threads=1)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("fitted: checkpoint") == 1
        runs[ranks] = folder / "run"
    return runs


def test_two_ranks_make_the_bank_of_one_to_the_last_bit(fitted):
    one, two = weights(fitted[1]), weights(fitted[2])
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    states = [read_state(find_checkpoint(path)) for path in fitted.values()]
    assert states[0]["fitted"] == states[1]["fitted"]
    assert [state["layout"]["world_size"] for state in states] == [1, 2]


def test_there_is_a_bank_for_each_class_and_modality_of_the_share_asked_for(fitted, shards):
    model = load_checkpoint(find_checkpoint(fitted[2])).model
    assert isinstance(model, MemoryBank)
    classes = ShardSet.open([shards]).classes("train")
    assert sorted(model.names) == sorted((name, slot) for name in classes for slot in (0, 1))
    patches = 8 * 8
    of_class = {name: len(refs) for name, refs in classes.items()}
    assert len(set(of_class.values())) == 2, "ranks have unequal shares"
    for name, bank_ND in zip(model.names, model.banks, strict=True):
        assert tuple(bank_ND.shape) == (of_class[name.class_name] * patches // 10, 64)


def test_the_state_says_that_it_is_finished_and_how_long_it_took(fitted):
    state = read_state(find_checkpoint(fitted[1]))
    assert (state["step"], state["finished"], state["recipe"]["method"]) == (1, True, "memory_bank")
    assert state["training_seconds"] >= 0
    assert "backbone_weights" in state


def test_it_is_evaluated_with_the_same_numbers_on_one_rank_and_on_two(fitted, shards, tmp_path):
    reports = []
    for ranks, launcher in ((1, "python"), (2, "torchrun")):
        words = ("--checkpoint", str(fitted[1]), "--data", str(shards), "--output-dir", str(tmp_path / f"on{ranks}"))
        evaluate(tmp_path, *words, launcher=launcher, ranks=ranks)
        reports.append(read_report(tmp_path / f"on{ranks}"))
    assert reports[0].classes == reports[1].classes
    assert reports[0].header["modalities joined"] == "root of the sum of squares"
    assert reports[0].header["method"] == "memory_bank"
    assert all(of_class.metrics["I-AUROC"] is not None for of_class in reports[0].classes)


@pytest.fixture(scope="module")
def calibrated(fitted, shards) -> Path:
    assert calibrate.main(["--checkpoint", str(fitted[1]), "--data", str(shards), "--false-alarm-rate", "0.5"]) == 0
    return fitted[1]


def images(level: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    return {
        "rgb": generator.integers(0, 256, (48, 48, 3), dtype=np.uint8),
        "depth": np.full((48, 48), level, dtype=np.uint16),
    }


def test_the_detector_takes_the_bank_of_a_class_it_knows_and_the_nearest_of_one_it_does_not(calibrated, shards):
    found = load_thresholds(find_checkpoint(calibrated))
    assert found is not None
    (with_threshold,) = found.classes
    detector = Detector.from_checkpoint(calibrated, data=[shards])
    names = list(ShardSet.open([shards]).classes("train"))
    of_classes = {name: detector.predict(images(900), class_name=name).score for name in names}
    unknown = detector.predict(images(900))
    other = detector.predict(images(900), class_name="never-seen")
    assert len(set(of_classes.values())) == 2
    assert unknown.score == other.score
    assert unknown.score <= max(of_classes.values())
    assert detector.predict(images(900), class_name=with_threshold).threshold == found.classes[with_threshold].value
    assert unknown.threshold is None
    known = ", ".join(detector.catalogue.classes)
    assert f"no threshold holds where the class is not known: name it: --class, one of {known}" in unknown.notes
    assert other.notes[0].startswith("class never-seen is not one that the model was trained on: known are ")
    assert other.notes[1:] == ("no threshold holds where the class is not known",), "one was named"


def test_a_sample_has_the_score_that_it_has_alone(calibrated, shards):
    """In one batch a class is known of some samples only."""
    engine = Detector.from_checkpoint(calibrated, data=[shards]).engine
    images_TCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    slots_T, known = torch.tensor([0, 1, 0, 1]), next(iter(ShardSet.open([shards]).classes("train")))
    _, together = engine.score_tokens(images_TCHW, [2, 2], slots_T, [known, None])
    _, first = engine.score_tokens(images_TCHW[:2], [2], slots_T[:2], [known])
    _, second = engine.score_tokens(images_TCHW[2:], [2], slots_T[2:], [None])
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-5, atol=0)


def test_it_is_exported_and_scores_as_the_detector_does_without_a_class(fitted, shards, tmp_path):
    target = tmp_path / "bank.pt2"
    words = ["--checkpoint", str(fitted[2]), "--data", str(shards), "--format", "torch", "--target", str(target)]
    assert export.main(words) == 0
    exported = torch.export.load(target).module()
    images_BMCHW = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    _, scores_B = exported(images_BMCHW)
    engine = Detector.from_checkpoint(fitted[2], data=[shards]).engine
    normalised = ((images_BMCHW - exported.mean_MC11) / exported.std_MC11).flatten(0, 1)
    _, expected_B = engine.score_tokens(normalised, [2, 2], torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(scores_B, expected_B, rtol=1e-3, atol=0)


@pytest.mark.long
def test_as_onnx_too(calibrated, shards, tmp_path):
    pytest.importorskip("onnxscript")
    target = tmp_path / "bank.onnx"
    words = ["--checkpoint", str(calibrated), "--data", str(shards), "--format", "onnx", "--target", str(target)]
    assert export.main(words) == 0
    one, other = (Detector.open(path) for path in (target, calibrated))
    assert one.predict(images(900)).score == pytest.approx(other.predict(images(900)).score, rel=1e-3)


def test_fitted_again_only_into_another_folder(fitted, shards, caplog):
    arguments = [*SMALL, "--data", str(shards), "--output-dir", str(fitted[1])]
    checkpoint = find_checkpoint(fitted[1])
    before = (checkpoint / "state.json").read_bytes()
    with caplog.at_level("INFO"):
        assert train(parse_arguments([*arguments, "--resume", str(fitted[1])]), ALONE)
    assert "is fitted already: nothing to do" in caplog.text
    assert (checkpoint / "state.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--resume", "--init-from"])
def test_a_checkpoint_of_another_method_is_said_in_one_line(fitted, shards, tmp_path, option):
    config = ["--data", str(shards)]
    if option == "--init-from":
        config += ["--output-dir", str(tmp_path / "new")]
    with pytest.raises(ValueError, match="is of method 'memory_bank', and recipe tiny of unimmad: weights of another"):
        train(parse_arguments(["--recipe", "tiny", *config, option, str(fitted[1])]), ALONE)
    checkpoint, _ = hand_made_checkpoint(tmp_path / "old", load_recipe("tiny"), [])
    said = "is of method 'unimmad'" if option == "--resume" else "memory_bank is fitted to the data, not trained"
    with pytest.raises(ValueError, match=said) as told:
        train(parse_arguments([*SMALL, *config, option, str(checkpoint)]), ALONE)
    assert "\n" not in str(told.value)


def test_an_output_folder_with_a_run_of_another_method(shards, tmp_path):
    hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [])
    rd = ["--recipe", "rd", "--data", str(shards), "--output-dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="is of method 'unimmad', and recipe rd of rd"):
        train(parse_arguments(rd), ALONE)


def test_images_too_small_for_a_backbone_without_weights_are_told(tmp_path):
    of_one_image = hand_made_shards(tmp_path / "set", ["materials"])
    words = ["--data", str(of_one_image), "--output-dir", str(tmp_path / "run"), "--set", "model.image_size=16"]
    with pytest.raises(ValueError, match=r"^model\.image_size 16 is too small for resnet18: .*; use a larger one$"):
        train(parse_arguments([*SMALL, *words]), ALONE)


def test_banks_above_the_limit_are_refused_with_what_to_set(shards, tmp_path):
    words = [*SMALL, "--data", str(shards), "--output-dir", str(tmp_path / "run"), "--set", "model.max_bank_gb=1e-6"]
    done = run([*command("python"), *words], tmp_path, threads=1)
    assert done.returncode == 2
    assert "max_bank_gb" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))
