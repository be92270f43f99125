"""The tables of a comparison, in all their forms."""

from __future__ import annotations

import csv
import io

import pytest
from made_results import result, seeds_of

from unimmad.comparing.results import by_method
from unimmad.comparing.tables import Compared, Failed, write_tables
from unimmad.report.published import published_rows
from unimmad.report.table import Strong

HOSTILE = "=cmd|' /C calc'!A1 <script>alert(1)</script> \\input{x} $a$"


def compared(*results, **more) -> Compared:
    return Compared(tuple(by_method(results, [])), **more)


@pytest.fixture
def two() -> Compared:
    return compared(
        result("ours", {"a/b": 0.9, "a/c": 0.7, "z/d": 0.5}),
        result("theirs", {"a/b": 0.8, "a/c": 0.75, "z/d": 0.5}, joined="maximum"),
    )


def rows_of(table, group: str) -> dict[str, str]:
    """By method, the first metric's cell."""
    return {row[1]: row[2] for row in table.rows if row[0] == group}


def test_every_class_each_datasets_mean_and_the_mean_of_datasets(two):
    table = two.metric_table()
    groups = list(dict.fromkeys(row[0] for row in table.rows))
    assert groups == ["a/b", "a/c", "mean of a", "z/d", "mean of datasets"]
    assert rows_of(table, "mean of a") == {"ours": "0.800", "theirs": "0.775"}
    assert rows_of(table, "mean of datasets") == {"ours": "0.650", "theirs": "0.637"}


def test_the_short_table_has_the_means_and_datasets_of_one_class(two):
    rows = two.metric_table(means_only=True).rows
    assert list(dict.fromkeys(row[0] for row in rows)) == ["mean of a", "z/d", "mean of datasets"]


def test_the_best_is_marked_in_every_form(two):
    table = two.metric_table()
    text = table.to_text().splitlines()
    place = text.index("a/b")
    assert text[place + 1].split()[:2] == ["ours", "0.900^"]
    assert text[place + 2].split()[:2] == ["theirs", "0.800"]
    assert len(text[place + 1].rstrip("^")) == len(text[place + 2]), "numbers stand below each other"
    assert "**0.900**" in table.to_markdown()
    assert "**0.750**" in table.to_markdown()
    assert "**0.637**" not in table.to_markdown()
    assert r"\textbf{0.900}" in table.to_latex()
    assert "^" not in table.to_csv()
    assert any("Bold (^ on a screen)" in note for note in table.notes)


def test_a_tie_marks_both_and_a_method_alone_is_not_called_best(two):
    text = two.metric_table().to_text().splitlines()
    place = text.index("z/d")
    assert text[place + 1].split()[1] == text[place + 2].split()[1] == "0.500^"
    assert "^" not in "".join(compared(result("rd", {"a/b": 0.5})).metric_table().to_text().splitlines()[:-3])


def test_the_rule_of_bold_says_how_many_seeds_there_are(two):
    assert two.metric_table().notes[0].startswith("One seed, so nobody knows")
    several = Compared((seeds_of("x", "a/b", [0.80, 0.84]), seeds_of("y", "a/b", [0.81])))
    assert several.metric_table().notes[0].startswith("Mean and standard deviation over seeds.")


def test_a_difference_below_the_seeds_spread_is_not_called_better():
    methods = (seeds_of("x", "a/b", [0.80, 0.84]), seeds_of("y", "a/b", [0.81, 0.81]), seeds_of("w", "a/b", [0.5, 0.5]))
    text = Compared(methods).metric_table().to_text()
    assert text.count("0.820 ± 0.028^") == text.count("0.810 ± 0.000^") == 8
    assert "0.500 ± 0.000^" not in text


def test_a_method_without_every_dataset_has_no_mean_of_datasets():
    both = compared(result("ours", {"a/b": 0.9, "z/d": 0.5}), result("theirs", {"a/b": 0.8}))
    assert set(rows_of(both.metric_table(), "mean of datasets")) == {"ours"}
    assert set(rows_of(both.metric_table(), "a/b")) == {"ours", "theirs"}


def test_an_undefined_metric_is_neither_a_number_nor_best():
    table = compared(result("ours", {"a/b": None}), result("theirs", {"a/b": 0.5})).metric_table()
    assert rows_of(table, "a/b") == {"ours": "n/a", "theirs": "0.500"}
    assert "n/a^" not in table.to_text()


def test_cells_without_a_result_are_named_with_their_reason(two):
    table = Compared(two.methods, (Failed("uniad, seed 1", "train ended with status 2: it can't"),)).metric_table()
    assert "no result of uniad, seed 1: train ended with status 2: it can't" in table.notes


def test_published_rows_are_marked_and_never_best():
    own = compared(result("ours", {"visa/pcb1": 0.2}), result("theirs", {"visa/pcb1": 0.1}))
    beside = Compared(own.methods, published=published_rows(["visa"]))
    assert beside.csv() == own.csv(), "they enter no number of ours"
    rows = [row for row in beside.metric_table().rows if row[0] == "published, visa"]
    assert {row[1].partition(",")[0] for row in rows} >= {"UniMMAD", "RD", "UniAD", "ViTAD", "MambaAD", "INP-Former"}
    assert all("2509.25934" in note for note in beside.metric_table().notes if note.startswith("UniMMAD"))
    assert rows
    assert not any(isinstance(cell, Strong) for row in rows for cell in row)


def test_the_cost_table_says_what_a_method_costs_and_how_it_joins_modalities(two):
    table = two.cost_table()
    found = {row[0]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert found["theirs"]["modalities joined"] == "maximum"
    assert found["ours"]["modalities joined"] == "root of the sum of squares"
    assert (found["ours"]["parameters"], found["ours"]["trained"]) == ("2.0", "0.5")
    assert (found["ours"]["GFLOP"], found["ours"]["images/s"], found["ours"]["peak GiB"]) == ("1.5", "20.0", "0.5")
    assert any("a CPU" in note for note in table.notes)


def test_minutes_that_nobody_took_are_not_a_number():
    table = compared(result("rd", {"a/b": 0.5}, minutes=None)).cost_table()
    assert dict(zip(table.heads, table.rows[0], strict=True))["minutes"] == "n/a"


def test_the_csv_has_a_number_a_row_at_full_precision():
    third = 1 / 3
    rows = list(csv.DictReader(io.StringIO(Compared((seeds_of("rd", "a/b", [third, 0.5]),)).csv().to_csv())))
    assert len(rows) == 8
    assert {float(row["mean"]) for row in rows} == {(third + 0.5) / 2}
    assert all(float(row["std"]) > 0.1 for row in rows)


def test_hostile_names_stay_text_in_every_form(tmp_path):
    made = compared(result(HOSTILE, {f"a/{HOSTILE}": 0.5}), failed=(Failed(HOSTILE, "<b>\nline | two"),))
    paths = {path.name: path.read_text() for path in write_tables(made, tmp_path)}
    assert set(paths) == {"comparison.md", "comparison.tex", "comparison.csv", "cost.csv"}
    assert "<script>" not in paths["comparison.md"]
    set_by_latex = [line for line in paths["comparison.tex"].splitlines() if not line.startswith("%")]
    assert not any(r"\input" in line for line in set_by_latex)
    assert any(r"\textbackslash{}input\{x\}" in line for line in set_by_latex)
    cells = [cell for row in csv.reader(io.StringIO(paths["cost.csv"])) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)
