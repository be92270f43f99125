"""Scores that are not numbers are refused by the name of their sample, wherever a model scores.

A weight of 3e38 is finite, and what is computed with it is not: so no check at load finds it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import spoil_weight
from parallel.ranks import run_on_ranks
from PIL import Image

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.cli.predict import main
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.inference.calibration import calibrate
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample
from unimmad.ranks.exchange import ALONE, Ranks

CPU = torch.device("cpu")
FOLDERS = "FOLDERS_OF_TEST_NOT_FINITE"
HUGE = "levels.0.out.0.weight"
BAD = r"\d+ of 4096 values of its anomaly map are NaN or infinite; check the model's weights and the input image"


@pytest.fixture(scope="module")
def spoilt(checkpoint_folder, tmp_path_factory) -> Path:
    copy = shutil.copytree(checkpoint_folder, tmp_path_factory.mktemp("spoilt") / checkpoint_folder.name)
    spoil_weight(copy, HUGE, 3e38)
    return copy


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def refused(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {BAD}"):
        call()


def evaluating_and_calibrating(checkpoint: Path, shards: Path, output: Path, ranks: Ranks = ALONE) -> None:
    """Each is refused; the first sample of all is named."""
    loaded = load_checkpoint(checkpoint)
    opened = ShardSet.open([shards])
    first = {split: next(iter(opened.classes(split).items())) for split in ("test", "calibration")}
    names = {split: re.escape(f"{name} {refs[0].entry.key}") for split, (name, refs) in first.items()}
    options = {"device": CPU, "workers": 0, "progress": False, "ranks": ranks}

    def together(call: Callable[..., object], *words: object) -> None:
        with ranks.together():
            call(loaded, [shards], *words, **options)

    refused(lambda: together(evaluate_checkpoint, output), names["test"])
    refused(lambda: together(calibrate, 0.1), names["calibration"])
    assert not list(output.rglob("report*"))


def test_evaluation_and_calibration(spoilt, calibration_shards, tmp_path):
    evaluating_and_calibrating(spoilt, calibration_shards, tmp_path)


def on_rank(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Every rank's own batch is bad; what each says is told on all."""
    spoilt, shards, output = (Path(word) for word in os.environ[FOLDERS].split(os.pathsep))
    evaluating_and_calibrating(spoilt, shards, output / str(rank), Ranks(rank, size))
    return {}


def test_two_ranks(spoilt, calibration_shards, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDERS, os.pathsep.join(map(str, (spoilt, calibration_shards, tmp_path))))
    run_on_ranks(on_rank, 2, tmp_path)


@pytest.fixture(scope="module")
def detector(spoilt, calibration_shards) -> Detector:
    return Detector.from_checkpoint(spoilt, device="cpu")


def test_a_detector_gives_what_comes_before(detector, checkpoint_folder):
    refused(lambda: detector.predict({"rgb": image(0)}), "image")
    good = Detector.from_checkpoint(checkpoint_folder, device="cpu")
    samples = [InputSample(f"sample {seed}", {"rgb": image(seed)}) for seed in range(4)]

    def score(prepared):
        maps_BHW, scores_B = (found.clone() for found in type(good.engine).score(good.engine, prepared))
        for place, sample in enumerate(prepared):
            if sample.name == "sample 2":
                maps_BHW[place, 0, 0] = torch.inf
        return maps_BHW, scores_B

    good.engine.score = score  # type: ignore[method-assign]
    found = good.predict_all(samples)
    assert [next(found).name for _ in range(2)] == ["sample 0", "sample 1"]
    with pytest.raises(ValueError, match=r"^sample 2: 1 of 4096 values of its anomaly map are NaN or infinite"):
        next(found)


@pytest.mark.parametrize("value", [3.4028235e38, 1e38, -9999.0])
def test_one_pixel_without_data_is_scored_as_one_not_measured_and_noted(checkpoint_folder, value):
    """It made the score NaN, and NaN is above no threshold."""
    good = Detector.from_checkpoint(checkpoint_folder, device="cpu")
    depth = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    modality = next(m for entry in good.catalogue.datasets.values() for m in entry.modalities if m.kind == "depth")
    depth[5, 5] = np.nan
    expected = good.predict({"rgb": image(0), modality.name: depth})
    depth[5, 5] = value
    found = good.predict({"rgb": image(0), modality.name: depth})
    assert (found.score, expected.notes) == (expected.score, ())
    assert found.notes == (f"{modality.name}: pixels of {np.float32(value):g} count as not measured",)


@pytest.mark.parametrize("dtype", [complex, object])
def test_arrays_of_other_things_are_refused(checkpoint_folder, dtype):
    good = Detector.from_checkpoint(checkpoint_folder, device="cpu")
    with pytest.raises(ValueError, match=r"^image, rgb: its values are (complex128|object); wanted integers or real"):
        good.predict({"rgb": np.zeros((8, 8, 3), dtype=dtype)})


def test_the_command_says_one_line(spoilt, tmp_path, capsys):
    Image.fromarray(image(0)).save(tmp_path / "part.png")
    words = ["--checkpoint", str(spoilt), "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--modality", f"rgb={tmp_path / 'part.png'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(rf": \S+: {BAD}$", said)


@pytest.mark.parametrize("scale", ["inf", "nan", "0"])
def test_a_scale_that_is_no_number_is_refused(spoilt, tmp_path, capsys, scale):
    assert main(["--checkpoint", str(spoilt), "--scale", scale, str(tmp_path)]) == 2
    assert "must be a finite number above 0" in capsys.readouterr().err
