from __future__ import annotations

import csv
import io
import re

import pytest

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.formatting import footnotes
from unimmad.report.report import ClassResult, Report, from_json
from unimmad.report.tables import csv_table, markdown_table, screen_table, write_tables

PIXEL_KEYS = METRIC_KEYS[3:]


def result(dataset, class_name, first, undefined=()):
    metrics = {key: None if key in undefined else first + number / 100 for number, key in enumerate(METRIC_KEYS)}
    return ClassResult(dataset, "industry", class_name, normal=4, anomalous=5, metrics=metrics)


@pytest.fixture
def complete():
    header = {"checkpoint": "runs/demo/step-300", "data": ", ".join(f"a/long/folder/{n}" for n in range(12))}
    return Report(header, (result("metal", "plate", 0.5), result("wood", "board", 0.7)))


@pytest.fixture
def partial():
    return Report({}, (result("metal", "plate", 0.5), result("metal", "a|b", 0.7, undefined=PIXEL_KEYS)))


def row_of(table, name):
    (line,) = [line for line in table.splitlines() if line.strip().startswith(name)]
    return line.split()[-8:]


def test_screen_table_has_every_row_in_80_columns(complete):
    table = screen_table(complete)
    assert max(map(len, table.splitlines())) <= 80
    expected = ["0.500", "0.510", "0.520", "0.530", "0.540", "0.550", "0.560", "0.570"]
    assert row_of(table, "plate") == row_of(table, "mean of metal") == expected
    assert row_of(table, "mean of classes")[0] == row_of(table, "mean of data sets")[0] == "0.600"
    assert table.startswith("checkpoint: runs/demo/step-300\n")
    assert "*" not in table


def test_screen_columns_are_aligned(complete):
    lines = screen_table(complete).splitlines()
    numbers = [line for line in lines if line.count("0.") == 8]
    places = {tuple(place for place, letter in enumerate(line) if letter == ".") for line in numbers}
    assert len(numbers) == 7
    assert len(places) == 1


def test_a_long_class_name_is_kept_whole(complete):
    name = "a_class_name_longer_than_its_column"
    table = screen_table(Report({}, (result("metal", name, 0.5),)))
    lines = table.splitlines()
    place = lines.index(f"  {name}")
    assert lines[place + 1].split()[0] == "0.500"


def test_partial_means_are_marked_and_explained(partial):
    assert footnotes(partial)[1] == (
        "* mean of metal covers 1 of 2 classes for P-AUROC, P-AP, P-F1max, AUPRO, AUPRO-99"
    )
    table = screen_table(partial)
    assert row_of(table, "mean of metal")[2:4] == ["0.620", "0.530*"]
    assert row_of(table, "a|b")[2:4] == ["0.720", "n/a"]
    assert "* mean of classes covers 1 of 2 classes" in table
    assert max(map(len, table.splitlines())) <= 80


def test_markdown_escapes_names_and_has_one_cell_a_column(partial):
    table = markdown_table(partial)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {row.replace(r"\|", "").count("|") for row in rows} == {13}
    assert r"| metal | a\|b | 4 | 5 | 0.700 |" in re.sub(" +", " ", table)
    assert r"**0.530\***" in table
    assert r"\* mean of metal covers 1 of 2 classes" in table


def test_csv_keeps_full_precision_and_says_what_is_undefined(partial):
    rows = list(csv.DictReader(io.StringIO(csv_table(partial))))
    assert [row["row"] for row in rows] == [
        "class",
        "class",
        "mean of metal",
        "field mean: industry",
        "mean of classes",
        "mean of data sets",
    ]
    assert float(rows[0]["P-AP"]) == partial.classes[0].metrics["P-AP"]
    assert rows[1]["P-AP"] == "n/a"
    assert (rows[1]["class"], rows[1]["normal"], rows[1]["anomalous"]) == ("a|b", "4", "5")
    assert rows[2]["note"].startswith("1 of 2 classes for P-AUROC")
    assert rows[0]["note"] == ""


def test_write_tables_writes_four_files_and_nothing_else(complete, tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_tables(complete, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.csv", "report.json", "report.md", "report.tex"]
    assert set(paths) == set(folder.iterdir())
    assert from_json((folder / "report.json").read_text()) == complete
    assert (folder / "report.md").read_text() == markdown_table(complete)


def test_an_unusable_folder_is_named(complete, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ValueError, match=r"cannot write .*file/report.json.*choose another output folder"):
        write_tables(complete, blocked)


def test_a_report_without_classes_has_its_heads(tmp_path):
    table = screen_table(Report({}, ()))
    assert row_of(table, "mean of classes") == ["n/a"] * 8
