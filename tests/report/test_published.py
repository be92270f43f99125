from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from unimmad.methods.registry import METHODS
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.html_page import save_page
from unimmad.report.published import published_rows
from unimmad.report.report import ClassResult, Report, from_json, to_json
from unimmad.report.tables import csv_table, latex_table, markdown_table, screen_table


def result(dataset, class_name="bottle", undefined=()):
    metrics = {key: None if key in undefined else 0.5 for key in METRIC_KEYS}
    return ClassResult(dataset, "industry", class_name, normal=4, anomalous=5, metrics=metrics)


@pytest.fixture
def report():
    return Report({"data": "50% & more_#"}, (result("MVTec-AD"), result("own", "a_b&c", METRIC_KEYS[3:])))


@pytest.fixture
def beside(report):
    return replace(report, published=published_rows(report.datasets, "unimmad"))


@pytest.mark.parametrize("name", ["mvtec_ad", "MVTec-AD", "MVTEC"])
def test_rows_go_by_the_data_sets_name(name):
    (row,) = published_rows(["own", name], "unimmad")
    assert row.dataset == name
    assert (row.metrics["I-AUROC"], row.metrics["P-F1max"], row.metrics["AUPRO-99"]) == (0.994, 0.602, 0.93)
    assert row.metrics["P-AP"] is row.metrics["AUPRO"] is None
    assert "2509.25934" in row.source


def test_visas_numbers_stand_under_the_metrics_that_they_are_of():
    (row,) = published_rows(["visa"], "unimmad")
    assert (row.metrics["P-AUROC"], row.metrics["P-AP"], row.metrics["P-F1max"]) == (0.989, 0.449, 0.472)
    assert row.metrics["AUPRO"] is row.metrics["AUPRO-99"] is None
    assert "stand under P-F1max and AUPRO in the paper" in row.note


OURS = ("level_search", "unimmad_search")
"""Methods that nobody has published."""


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("memory_bank", *OURS)])
def test_every_trained_method_has_a_row_for_both_sets_with_its_source_and_settings(method):
    rows = published_rows(["MVTec", "VisA"], method)
    assert [row.dataset for row in rows] == ["MVTec", "VisA"]
    for row in rows:
        given = {key: value for key, value in row.metrics.items() if value is not None}
        assert set(given) >= {"I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-F1max"}
        assert all(0.3 < value < 1 for value in given.values())
        assert re.search(r"(CVPR|NeurIPS|CVIU) 20\d\d", row.source)
        assert re.search(r"\d+ x \d+", row.source)
        assert row.note


def test_all_methods_rows_stand_side_by_side():
    names = [row.name for row in published_rows(["mvtec"])]
    assert len(names) == len(set(names)) == len(METHODS) - len(OURS)


def test_a_method_without_a_row_for_the_data():
    with pytest.raises(ValueError, match="no published row of memory_bank for visa; there are rows for mvtec_ad, "):
        published_rows(["visa"], "memory_bank")
    with pytest.raises(ValueError, match="no published row of mine for visa; there are rows for nothing else"):
        published_rows(["visa"], "mine")


def test_without_any_row_it_says_which_there_are():
    with pytest.raises(ValueError, match=r"no published row for own, bread; .*mvtec_ad.*visa"):
        published_rows(["own", "bread"])


def test_they_stand_below_our_mean_and_enter_none(report, beside):
    assert beside.means() == report.means()
    lines = screen_table(beside).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("mean of MVTec-AD"))
    assert lines[place + 1].split() == ["published", "0.994", "0.996", "0.987", "0.981", "-", "0.602", "-", "0.930"]
    assert max(map(len, lines)) <= 80
    assert "published: UniMMAD, MVTec-AD: UniMMAD, CVPR 2026" in screen_table(beside)
    assert "published" not in screen_table(report)


def test_every_table_marks_them_as_published(beside, tmp_path):
    assert re.search(r"\| MVTec-AD +\| published: UniMMAD, MVTec-AD +\|", markdown_table(beside))
    rows = list(csv.DictReader(io.StringIO(csv_table(beside))))
    assert rows[-1]["row"] == "published"
    assert (rows[-1]["I-AP"], rows[-1]["P-AP"]) == ("0.996", "")
    assert from_json(to_json(beside)) == beside
    assert r"published: UniMMAD, MVTec-AD & 0.994" in latex_table(beside)
    save_page(beside, tmp_path / "report.html", class_pictures={})
    page = (tmp_path / "report.html").read_text()
    assert page.count("<th>published: UniMMAD, MVTec-AD</th>") == 1
    assert "<th>field mean: " in page


def test_latex_is_a_booktabs_table_with_escaped_names(report):
    text = latex_table(report)
    lines = text.splitlines()
    for rule in (r"\toprule", r"\bottomrule", r"\begin{tabular}{lrrrrrrrr}", r"\end{tabular}"):
        assert lines.count(rule) == 1
    rows = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert {row.replace(r"\&", "").count("&") for row in rows} == {8}
    assert r"\quad a\_b\&c & 0.500 & 0.500 & 0.500 & n/a" in text
    assert "0.500$^*$" in text
    assert lines[0] == "% data: 50% & more_#"
    assert all(line.startswith("%") for line in lines[: lines.index(r"\begin{tabular}{lrrrrrrrr}")])
