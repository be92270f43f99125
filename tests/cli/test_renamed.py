"""Options under their old names."""

from __future__ import annotations

import pytest

from unimmad.cli import evaluate, shards
from unimmad.cli.evaluate_arguments import evaluation_parser
from unimmad.cli.renamed import with_new_names


def test_an_old_name_works_and_says_the_new_one_once(capsys):
    argv = with_new_names(["a", "--old", "1", "--old=2", "--older"], {"--old": "--new"})
    assert argv == ["a", "--new", "1", "--new=2", "--older"]
    assert capsys.readouterr().err == "note: --old is called --new now\n"


@pytest.mark.parametrize("argv", [["--fresh"], ["--spill", "somewhere"]])
def test_evaluation_takes_its_old_names(argv):
    new = with_new_names(argv, evaluate.RENAMED)
    assert new != argv
    evaluation_parser().parse_args(new)


def test_shards_takes_its_old_names(tmp_path, capsys):
    argv = ["synthetic", "--target", str(tmp_path / "x"), "--field", "x", "--calibration-share", "2"]
    assert shards.main(argv) == 2
    assert capsys.readouterr().err.count("is called") == 2
