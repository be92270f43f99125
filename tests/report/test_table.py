"""One table in all its forms: names as headings, marks, what stands out, and room for long names."""

from __future__ import annotations

import csv
import io

import jinja2
import pytest

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.table import WIDTH, Strong, Table

ROWS = (("metal", "plate", "0.5", "0.25*"), ("metal", Strong("best"), Strong("0.75"), "n/a"), ("", "all", "1.0", "0.0"))
TABLE = Table(("data set", "method", "score", "spread"), ROWS, names=2, caption="A caption.", notes=("* one_note",))


def test_markdown_is_padded_and_bold_where_a_cell_is_strong():
    assert TABLE.to_markdown().splitlines() == [
        "A caption.",
        "",
        "| data set | method   |    score | spread |",
        "| -------- | -------- | -------: | -----: |",
        "| metal    | plate    |      0.5 | 0.25\\* |",
        "| metal    | **best** | **0.75** |    n/a |",
        "|          | all      |      1.0 |    0.0 |",
        "",
        r"\* one_note",
    ]


def test_latex_has_a_rule_and_a_heading_a_group():
    assert TABLE.to_latex().splitlines() == [
        "% A caption.",
        "% * one_note",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & score & spread \\",
        r"\midrule",
        r"\multicolumn{3}{l}{metal} \\",
        r"\quad plate & 0.5 & 0.25$^*$ \\",
        r"\quad \textbf{best} & \textbf{0.75} & n/a \\",
        r"\midrule",
        r"all & 1.0 & 0.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_text_has_headings_and_numbers_in_line_whether_marked_or_not():
    assert TABLE.to_text().splitlines() == [
        "A caption.",
        "",
        f"{'method':<66}{'score':>6} {'spread':>7}",
        "-" * WIDTH,
        "metal",
        f"{'  plate':<66}{'0.5':>6} {'0.25*':>7}",
        f"{'best':<66}{'0.75':>6} {'n/a':>6}",
        "-" * WIDTH,
        f"{'all':<66}{'1.0':>6} {'0.0':>6}",
        "* one_note",
    ]


def test_csv_is_the_heads_and_rows_alone():
    assert list(csv.reader(io.StringIO(TABLE.to_csv()))) == [list(TABLE.heads), *map(list, ROWS)]


def test_a_template_that_escapes_sets_a_strong_cell_in_bold():
    page = jinja2.Template("{{ cell }}", autoescape=True)
    assert page.render(cell=Strong("<i>")) == "<b>&lt;i&gt;</b>"


@pytest.mark.parametrize("mark", ["", "*"])
def test_the_heads_of_metrics_say_once_what_is_of_images_and_what_of_pixels(mark: str) -> None:
    table = Table(("class", *METRIC_KEYS), [("plate", *[f"0.500{mark}"] * 8)])
    spans, heads, rule, row = table.to_text().splitlines()
    assert spans.split() == ["------", "image", "------", "-------------", "pixel", "-------------"]
    assert heads.split() == ["class", "AUROC", "AP", "F1max", "AUROC", "AP", "F1max", "AUPRO", "PRO-99"]
    assert len(spans) == len(rule) == len(row) == WIDTH


def test_numbers_that_are_too_wide_leave_names_their_room():
    table = Table(("method", *"abcdef"), [("a", *["0.981 (0.003)"] * 6), ("a name of more than 16", *["0.1"] * 6)])
    assert table.to_text().splitlines()[2:] == [
        "a" + " " * 15 + " 0.981 (0.003)" * 6,
        "a name of more than 16",
        " " * 16 + "           0.1" * 6,
    ]


def test_a_table_without_rows_has_its_heads():
    empty = Table(("name", "number"), ())
    assert empty.to_text().splitlines()[0].split() == ["name", "number"]
    assert empty.to_markdown().splitlines() == ["| name | number |", "| ---- | -----: |"]
    assert empty.to_csv() == "name,number\n"
    assert r"name & number \\" in empty.to_latex()
