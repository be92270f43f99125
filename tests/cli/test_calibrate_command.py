"""unimmad calibrate: the thresholds of evaluate --calibrate, with only the options that have an effect on them."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hand_made import hand_made_checkpoint

from unimmad.checkpoint.thresholds import THRESHOLDS_NAME
from unimmad.cli import calibrate
from unimmad.cli.calibrate import main
from unimmad.cli.evaluate import main as evaluate_main
from unimmad.cli.evaluate_arguments import NOT_TO_CALIBRATE, calibration_parser, evaluation_parser
from unimmad.config import load_recipe
from unimmad.data.layouts.calibration import set_aside
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.ranks.exchange import ALONE


def options(parser) -> set[str]:
    return {action.dest for action in parser._actions}


def test_its_options_are_those_that_evaluate_takes_with_calibrate():
    left_out = options(evaluation_parser()) - options(calibration_parser())
    assert left_out == NOT_TO_CALIBRATE | {"calibrate"}
    assert options(calibration_parser()) - {"missing_sensors"} < options(evaluation_parser())


def test_it_writes_what_evaluate_with_calibrate_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [drawn] = (found for found in synthetic_sets(train_per_class=4) if found.name == "solids")
    write_shards([replace(drawn, samples=tuple(set_aside(drawn.samples, 0.5, seed=0)))], Path("data/small"))
    checkpoint, _ = hand_made_checkpoint(Path("runs/tiny"), load_recipe("tiny"), [Path("data/small")])
    argv = ["--device", "cpu", "--workers", "0", "--false-alarm-rate", "0.4"]
    assert main(argv) == 0
    said, written = capsys.readouterr().out, (checkpoint / THRESHOLDS_NAME).read_bytes()
    assert "solids/cookie" in said
    (checkpoint / THRESHOLDS_NAME).unlink()
    assert evaluate_main([*argv, "--calibrate"]) == 0
    assert (capsys.readouterr().out, (checkpoint / THRESHOLDS_NAME).read_bytes()) == (said, written)


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["unimmad calibrate"])
    assert main(["--false-alarm-rate", "0.1"]) == 2
    assert capsys.readouterr().err == "unimmad calibrate: no run in runs/ yet; train one first: unimmad train\n"
    with pytest.raises(SystemExit, match="2"):
        main(["--split", "train"])
    assert "unimmad calibrate: error: unrecognized arguments: --split train" in capsys.readouterr().err


def test_scoring_again_without_a_sensor_takes_the_same_checkpoint(tmp_path, monkeypatch):
    """Without --checkpoint the newest run's is meant, which may be another by then."""
    first = SimpleNamespace(folder=tmp_path / "first", weights_digest="1")
    monkeypatch.setattr(calibrate, "chosen_checkpoint", lambda arguments, ranks: SimpleNamespace(**vars(arguments)))
    again = calibrate._again(first, Namespace(checkpoint=None, weights_digest="1"), ALONE)
    assert again.checkpoint == first.folder
    with pytest.raises(ValueError, match="first: its weights changed during calibration"):
        calibrate._again(first, Namespace(checkpoint=None, weights_digest="2"), ALONE)
