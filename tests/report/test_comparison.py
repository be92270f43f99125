from __future__ import annotations

import csv
import re

import pytest

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.comparison import OtherReport, compare, difference_table, read_report, write_comparison
from unimmad.report.report import ClassResult, Report, to_json


def result(dataset, class_name, value, undefined=()):
    metrics = {key: None if key in undefined else value for key in METRIC_KEYS}
    return ClassResult(dataset, "industry", class_name, normal=4, anomalous=5, metrics=metrics)


OURS = Report(
    {"blur": "none", "recipe": "demo"},
    (result("a", "x", 0.75), result("a", "y", 0.5, undefined=["P-AP"]), result("b", "new", 0.1)),
)
THEIRS = Report(
    {"blur": "Gaussian 15 x 15", "recipe": "demo"},
    (result("a", "y", 0.5), result("a", "x", 0.5), result("c", "old", 0.9)),
)


def test_differences_are_ours_minus_theirs_over_common_classes():
    comparison = compare(OURS, OtherReport("other.json", THEIRS))
    by_name = {row.name: row.differences for row in comparison.rows}
    assert list(by_name) == ["x", "y", "mean of a", "field mean: industry", "mean of classes", "mean of data sets"]
    assert by_name["x"]["AUPRO"] == pytest.approx(0.25)
    assert by_name["y"]["P-AP"] is None
    assert by_name["mean of a"]["I-AUROC"] == by_name["mean of classes"]["I-AUROC"] == pytest.approx(0.125)
    assert comparison.header == (("blur", "none", "Gaussian 15 x 15"),)
    assert (comparison.only_ours, comparison.only_theirs) == (("b/new",), ("c/old",))


def test_the_screen_has_signs_and_says_what_else_differs():
    text = difference_table(compare(OURS, OtherReport("other.json", THEIRS))).to_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Differences: this report minus other.json."
    assert next(line for line in lines if line.startswith("  x")).split()[1:] == ["+0.250"] * 8
    assert next(line for line in lines if line.startswith("  y")).split()[1:5] == ["0.000"] * 4
    assert "n/a" in text
    assert "blur: none (this), Gaussian 15 x 15 (other)" in text
    assert "only in this report and left out: b/new" in text
    assert "only in the other and left out: c/old" in text


def test_files_hold_both_values_in_full(tmp_path):
    paths = write_comparison(compare(OURS, OtherReport("other.json", THEIRS)), tmp_path)
    assert [path.name for path in paths] == ["comparison.csv", "comparison.md"]
    rows = list(csv.DictReader(paths[0].open()))
    assert len(rows) == 6 * len(METRIC_KEYS)
    assert (rows[0]["this"], rows[0]["other"], rows[0]["difference"]) == ("0.75", "0.5", "0.25")
    assert re.search(r"\| a +\| x +\| +\+0\.250 \|", paths[1].read_text())


def test_a_report_against_itself_shows_zeros():
    comparison = compare(OURS, OtherReport("itself", OURS))
    assert {value for row in comparison.rows for value in row.differences.values()} == {0.0, None}
    assert comparison.notes == ()
    assert "+" not in difference_table(comparison).to_text()


def test_reports_without_a_common_class_are_refused():
    with pytest.raises(ValueError, match=r"other.json has no class in common"):
        compare(OURS, OtherReport("other.json", Report({}, THEIRS.classes[2:])))


def test_a_folder_stands_for_its_report(tmp_path):
    (tmp_path / "report.json").write_text(to_json(OURS))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == OURS


@pytest.mark.parametrize(
    ("text", "message"), [(None, "can't be read as a report"), ("{", "report.json: the report is not JSON")]
)
def test_an_unusable_report_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(error.value)
