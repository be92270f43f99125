"""A checkpoint's report in a folder."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import os
import re
import shutil
from functools import partialmethod
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from hand_made import hand_made_shards
from markupsafe import escape
from PIL import Image
from torch import nn

from unimmad.checkpoint import state
from unimmad.config import load_recipe
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.comparison import OtherReport
from unimmad.report.report import from_json

CPU = torch.device("cpu")
CLOSE = 1e-4
"""Of metrics: rounding lets a few of a class's 12 288 pixels change places in the order that metrics go by."""


def evaluated(checkpoint, data: list[Path], output: Path, **options) -> Evaluation:
    return evaluate_checkpoint(checkpoint, data, output, device=CPU, workers=0, progress=False, **options)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def finished(checkpoint, small_shards, tmp_path_factory) -> tuple[Evaluation, Path]:
    output = tmp_path_factory.mktemp("evaluated") / "new" / "report"
    return evaluated(checkpoint, [small_shards], output), output


def test_tables_and_pictures_are_linked_from_the_page_and_nothing_else_is_there(finished):
    evaluation, output = finished
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', evaluation.page.read_text()))
    assert {output / unquote(link) for link in links} | {evaluation.page} == set(files_in(output))
    tables = {"report.json", "report.csv", "report.md", "report.tex", "image_scores.csv"}
    assert {path.name for path in evaluation.tables} == tables
    assert {*evaluation.tables, evaluation.overview, evaluation.page} <= set(files_in(output))
    names = {"solids-cookie", "solids-rope", "brains-brain_ventricles", "brains-brain_upper"}
    assert {path.stem for path in (output / "pictures").iterdir()} == names
    assert {path.stem for path in (output / "curves").iterdir()} == names


def test_a_checkout_that_is_not_installed_is_evaluated_too(checkpoint, small_shards, tmp_path, monkeypatch):
    def none_installed(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(state, "version", none_installed)
    assert evaluated(checkpoint, [small_shards], tmp_path).report.classes


def test_pictures_show_something(finished):
    _, output = finished
    for path in output.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 64
            assert len(picture.convert("RGB").getcolors(2**20) or range(1000)) > 100


def test_the_page_holds_the_header_and_every_class(finished):
    evaluation, _ = finished
    page = evaluation.page.read_text()
    for value in evaluation.report.header.values():
        assert escape(value) in page
    for result in evaluation.report.classes:
        assert f"<h2>{result.dataset} / {result.class_name}</h2>" in page


def test_the_tables_hold_the_reports_numbers(finished):
    evaluation, output = finished
    assert from_json((output / "report.json").read_text()) == evaluation.report
    rows = [row for row in csv.reader((output / "report.csv").open()) if row and not row[0].startswith("#")]
    heads = rows[0]
    by_class = {row[heads.index("class")]: row for row in rows[1:]}
    for result in evaluation.report.classes:
        for key in METRIC_KEYS:
            assert float(by_class[result.class_name][heads.index(key)]) == pytest.approx(result.metrics[key])
        assert f"| {result.class_name} " in (output / "report.md").read_text()


def test_the_header_says_how_the_numbers_came_about(finished, small_shards):
    header = finished[0].report.header
    assert header["recipe"] == "tiny"
    assert header["backbone"].startswith("resnet18, weights: none")
    assert header["image size"] == "64 x 64"
    assert header["blur"] == "Gaussian 5 x 5, sigma 1, zero padding"
    assert header["image score"] == "mean of the map's top 4 of 4096 values"
    assert header["masks"] == "resized by area, anomalous where any part of a pixel is > 0"
    assert not {"masks lost", "made smaller", "tiles", "aspect"} & set(header)
    assert header["data"].endswith("(test split)")
    assert header["data"].startswith((str(small_shards), os.path.relpath(small_shards)))


def test_options_reach_the_numbers_and_the_header(checkpoint, small_shards, finished, tmp_path):
    bilinear = evaluated(checkpoint, [small_shards], tmp_path / "bilinear", mask_resize="bilinear").report
    assert bilinear.header["masks"] == "resized bilinear, anomalous where > 0"
    by_area = finished[0].report
    assert [r.metrics["I-AUROC"] for r in bilinear.classes] == [r.metrics["I-AUROC"] for r in by_area.classes]
    assert [r.metrics["P-AP"] for r in bilinear.classes] != [r.metrics["P-AP"] for r in by_area.classes]
    train = evaluated(checkpoint, [small_shards], tmp_path / "train", split="train").report
    assert train.header["data"].endswith("(train split)")
    assert {value for mean in train.means() for value in mean.metrics.values()} == {None}


def test_the_recipes_batch_size_changes_no_number(checkpoint, small_shards, finished, tmp_path):
    recipe = load_recipe("tiny", ["evaluation.batch_size=1", "evaluation.pictures_per_class=0"])
    alone = evaluated(dataclasses.replace(checkpoint, recipe=recipe), [small_shards], tmp_path)
    assert alone.overview is None
    assert not (tmp_path / "pictures").exists()
    assert alone.page.is_file()
    for ours, theirs in zip(alone.report.classes, finished[0].report.classes, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=CLOSE)


@pytest.mark.parametrize("setting", ["channels_last", "compile"])
def test_another_way_to_compute_changes_no_number(checkpoint, small_shards, finished, tmp_path, monkeypatch, setting):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    recipe = load_recipe("tiny", [f"evaluation.{setting}=true", "evaluation.pictures_per_class=0"])
    model = copy.deepcopy(checkpoint.model)
    other = evaluated(dataclasses.replace(checkpoint, recipe=recipe, model=model), [small_shards], tmp_path)
    assert (model.memory_format is torch.channels_last) is (setting == "channels_last")
    assert (model.encoder._compiled_call_impl is not None) is (setting == "compile")
    for ours, theirs in zip(other.report.classes, finished[0].report.classes, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=CLOSE)


def test_without_heat_maps_those_of_the_report_before_are_gone(checkpoint, small_shards, tmp_path):
    assert evaluated(checkpoint, [small_shards], tmp_path).overview == tmp_path / "overview.png"
    recipe = load_recipe("tiny", ["evaluation.pictures_per_class=0"])
    evaluated(dataclasses.replace(checkpoint, recipe=recipe), [small_shards], tmp_path)
    assert not (tmp_path / "overview.png").exists()
    assert list((tmp_path / "pictures").iterdir()) == []
    assert len(list((tmp_path / "curves").iterdir())) == 4


def test_several_folders_make_one_report(checkpoint, small_shards, finished, tmp_path):
    materials = hand_made_shards(tmp_path / "materials", ["materials"])
    report = evaluated(checkpoint, [materials, small_shards], tmp_path / "both").report
    assert report.datasets == ("materials", "solids", "brains")
    of_small = [result for result in report.classes if result.dataset != "materials"]
    assert [r.metrics for r in of_small] == [pytest.approx(r.metrics, abs=CLOSE) for r in finished[0].report.classes]


def test_a_cut_shard_is_named_and_nothing_is_written(checkpoint, small_shards, tmp_path):
    copy = shutil.copytree(small_shards, tmp_path / "cut")
    shard = next(copy.glob("test-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    with pytest.raises(ValueError, match=rf"{shard.name} is .* it was cut short"):
        evaluated(checkpoint, [copy], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_an_output_folder_that_cannot_be_is_refused(checkpoint, small_shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/report.*choose another output folder"):
        evaluated(checkpoint, [small_shards], tmp_path / "file" / "report")


def test_a_data_set_without_that_split_is_refused(checkpoint, small_shards, tmp_path):
    copy = shutil.copytree(small_shards, tmp_path / "train-only")
    index = json.loads((copy / "index.json").read_text())
    index["samples"] = [sample for sample in index["samples"] if sample["split"] == "train"]
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="test"):
        evaluated(checkpoint, [copy], tmp_path / "report")


def test_another_reports_differences_are_on_the_page_and_in_tables(checkpoint, small_shards, finished, tmp_path):
    plain = dataclasses.replace(checkpoint, recipe=load_recipe("tiny", ["evaluation.pictures_per_class=0"]))
    theirs = finished[0].report
    first = theirs.classes[0]
    changed = dataclasses.replace(first, metrics={**first.metrics, "I-AP": first.metrics["I-AP"] - 0.125})
    other = OtherReport("before/report.json", dataclasses.replace(theirs, classes=(changed, *theirs.classes[1:])))
    found = evaluated(plain, [small_shards], tmp_path / "report", other=other)
    assert found.comparison.rows[0].differences["I-AP"] == pytest.approx(0.125, abs=CLOSE)
    page = found.page.read_text()
    assert "<caption>Differences: this report minus before/report.json.</caption>" in page
    assert "<td>+0.125</td>" in page
    assert {"comparison.csv", "comparison.md"} <= {path.name for path in found.tables}
    assert 'href="comparison.csv"' in page


def test_a_report_over_other_data_is_refused_before_anything_is_scored(checkpoint, small_shards, finished, tmp_path):
    elsewhere = dataclasses.replace(finished[0].report.classes[0], dataset="elsewhere")
    other = OtherReport("theirs", dataclasses.replace(finished[0].report, classes=(elsewhere,)))
    with pytest.raises(ValueError, match="theirs has no class in common"):
        evaluated(checkpoint, [small_shards], tmp_path / "report", other=other)
    assert not (tmp_path / "report").exists()
