"""Evaluation, calibration and prediction compute in the same numbers, whatever training left the process in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.config import Precision
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation import scoring
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.scoring import chosen_precision
from unimmad.inference.calibration import calibrate
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample
from unimmad.model.backends.tf32 import BOTH, NEITHER, Tf32, allow_tf32, tf32
from unimmad.model.unimmad import UniMMAD

CPU = torch.device("cpu")
ForwardPass = tuple[Tf32, bool, bool]
"""What a forward pass ran in: TF32, whether in inference mode, whether under autocast."""


@pytest.fixture
def passes(monkeypatch) -> Iterator[list[ForwardPass]]:
    """Of the passes that follow, in a process whose training allowed TF32."""
    before, seen, forward = tf32(), [], UniMMAD.forward

    def noted(self, *given):
        seen.append((tf32(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return forward(self, *given)

    monkeypatch.setattr(UniMMAD, "forward", noted)
    allow_tf32(BOTH)
    yield seen
    assert tf32() == BOTH
    allow_tf32(before)


@pytest.fixture
def scorers(checkpoint_folder, calibration_shards, tmp_path) -> dict[str, Callable[[Precision | None], object]]:
    """Everything that scores, by name."""

    def evaluated(precision: Precision | None) -> object:
        checkpoint = load_checkpoint(checkpoint_folder)
        return evaluate_checkpoint(
            checkpoint,
            [calibration_shards],
            tmp_path / "report",
            device=CPU,
            workers=0,
            progress=False,
            precision=precision,
        )

    def calibrated(precision: Precision | None) -> object:
        checkpoint = load_checkpoint(checkpoint_folder)
        return calibrate(checkpoint, [calibration_shards], 0.5, device=CPU, progress=False, precision=precision)

    def predicted(precision: Precision | None) -> object:
        detector = Detector.open(checkpoint_folder, device="cpu", precision=precision)
        return detector.predict({"rgb": np.zeros((8, 8, 3), np.uint8)})

    return {"evaluation": evaluated, "calibration": calibrated, "prediction": predicted}


@pytest.mark.parametrize("name", ["evaluation", "calibration", "prediction"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whatever_scores_does_without_tf32_in_inference_mode_and_the_precision_asked_for(
    passes, scorers, name, precision
):
    scorers[name](precision)
    assert set(passes) == {(NEITHER, True, precision == "bf16")}


@pytest.mark.parametrize("default", ["fp32", "bf16"])
def test_all_have_the_same_default(passes, scorers, default, monkeypatch):
    monkeypatch.setattr(scoring, "default_precision", lambda device: default)
    for name, score in scorers.items():
        passes.clear()
        score(None)
        assert set(passes) == {(NEITHER, True, default == "bf16")}, name


def test_a_precision_that_is_none_is_refused(checkpoint_folder):
    with pytest.raises(ValueError, match="precision 'fp16' is not one of fp32, bf16"):
        Detector.from_checkpoint(checkpoint_folder, device="cpu", precision="fp16")
    assert chosen_precision("bf16", CPU) == "bf16"


def test_evaluation_and_prediction_give_a_sample_the_same_score_to_the_last_bit(
    scorers, checkpoint_folder, calibration_shards, tmp_path
):
    shards = ShardSet.open([calibration_shards])
    detector = Detector.from_checkpoint(checkpoint_folder, device="cpu")
    for scored in scorers["evaluation"](None).scored:
        samples = []
        for ref in shards.classes("test")[scored.class_name]:
            files = {}
            for name, member in ref.entry.images.items():
                files[name] = tmp_path / f"{ref.entry.key}-{name}.{member.name.rpartition('.')[2]}"
                files[name].write_bytes(shards.member_bytes(ref, member))
            samples.append(InputSample(ref.entry.key, files))
        found = list(detector.predict_all(samples, batch_size=4))
        assert [prediction.name for prediction in found] == list(scored.keys)
        assert [prediction.score for prediction in found] == scored.image_scores.tolist()
