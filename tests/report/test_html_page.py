"""The page: well-formed, complete, safe against names, links that lead somewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.html_page import Picture, Section, save_page
from unimmad.report.report import ClassResult, Report
from unimmad.report.table import Table

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects what a page holds and complains where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.sizes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.identifiers += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.images += [values["src"]] if "src" in values else []
        self.sizes += [(values["width"], values["height"])] if tag == "img" else []
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data


def result(dataset, name, value=0.5):
    metrics = dict.fromkeys(METRIC_KEYS, value)
    return ClassResult(dataset, "industry", name, normal=3, anomalous=2, metrics=metrics)


@pytest.fixture
def report():
    classes = (result("metal", "plate", 0.91), result("metal", "a plate"), result("odd & <b>", "50% #1?", None))
    return Report({"checkpoint": 'runs/"x" <script>alert(1)</script>', "blur": "none"}, classes)


@pytest.fixture
def page(report, tmp_path):
    folder = tmp_path / "report"
    pictures = {
        (found.dataset, found.class_name): [
            Picture(folder / "pictures" / f"{number} #50%.png", f"heat maps {number}"),
            Picture(folder / "curves" / f"{number}.png", "curves <1>"),
        ]
        for number, found in enumerate(report.classes)
    }
    for of_class in pictures.values():
        for picture in of_class:
            picture.path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (70, 30)).save(picture.path)
    Image.new("L", (20, 10)).save(folder / "overview.png")
    (folder / "report.csv").write_text("")
    table = Table(("set", "entropy"), (("<metal>", "0.5"),), caption="spread", notes=("a <note>",))
    save_page(
        report,
        folder / "report.html",
        class_pictures=pictures,
        overview=folder / "overview.png",
        sections=[Section("Experts & more", "who & what", tables=(table,))],
        files=[folder / "report.csv"],
    )
    return folder, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_it_is_one_document_without_scripts_or_network(page):
    folder, found = page
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert found.tags.count("html") == found.tags.count("body") == found.tags.count("h1") == 1
    assert "script" not in found.tags
    assert not [link for link in (*found.links, *found.images) if ":" in unquote(link).split("/")[0]]


def test_names_are_text_and_never_markup(page):
    _, found = page
    assert "<script>alert(1)</script>" in found.text
    assert "odd & <b> / 50% #1?" in found.text
    assert "<metal>" in found.text
    assert "a <note>" in found.text


def test_header_tables_and_sections_are_in_it(page):
    _, found = page
    for expected in (
        *METRIC_KEYS,
        "checkpoint",
        "blur",
        "0.910",
        "n/a",
        "mean of metal",
        "mean of classes",
        "who & what",
    ):
        assert expected in found.text
    assert "* mean of classes covers 2 of 3 classes" in found.text


def test_every_class_has_a_section_with_its_pictures(page, report):
    folder, found = page
    shown = {folder / unquote(image) for image in found.images}
    assert len(shown) == len(found.images) == 2 * len(report.classes) + 1
    assert all(path.is_file() for path in shown)
    assert found.sizes == [("20", "10"), *[("70", "30")] * 6]
    headings = [f"{found_class.dataset} / {found_class.class_name}" for found_class in report.classes]
    assert all(found.text.count(heading) == 2 for heading in headings)  # in the table and above its section


def test_links_lead_to_sections_and_files(page):
    folder, found = page
    assert len(set(found.identifiers)) == len(found.identifiers)
    inside = {link[1:] for link in found.links if link.startswith("#")}
    assert inside <= set(found.identifiers)
    assert len([name for name in inside if name.startswith("class-")]) == 3
    outside = [Path(unquote(link)) for link in found.links if not link.startswith("#")]
    assert Path("report.csv") in outside
    assert all((folder / path).is_file() for path in outside)


def test_a_page_that_cannot_be_written_is_a_clear_error(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*file/report\.html"):
        save_page(report, tmp_path / "file" / "report.html", class_pictures={})
