"""What the documentation says of commands, settings and folders is all that there is of them."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from pydantic import BaseModel

from tools import site_pages
from unimmad.cli.main import COMMANDS
from unimmad.config import parse_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return site_pages.generated_pages()


def test_every_command_has_its_page_in_the_site(pages) -> None:
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert set(site_pages.PARSERS) == set(COMMANDS)
    assert all(f"commands/{name}.md" in pages and f"commands/{name}.md" in navigation for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_page_has_all_of_its_help(pages, name) -> None:
    said = re.sub(r"\s+", " ", pages[f"commands/{name}.md"])
    assert f"unimmad {name}" in said
    for option in re.findall(r"\B--[a-z][\w-]+", site_pages.PARSERS[name]().format_help()):
        assert option in said
    for action in site_pages.PARSERS[name]()._actions:
        if action.help != argparse.SUPPRESS:
            assert re.sub(r"\s+", " ", (action.help or "").split("%")[0]) in said.replace("- ", "-")


def test_the_settings_page_has_every_setting_with_its_docstring(pages) -> None:
    for section, settings in parse_recipe({"name": ""}, "the defaults"):
        if section not in ("name", "method"):
            keys = type(settings).model_fields
            assert all(f"`{section}.{key}`" in pages["settings.md"] for key in keys)
    # A docstring of two lines, a default, and what shipped recipes say instead.
    assert re.search(
        r"^\| `model.backbone_weights` \| `imagenet` \| .*tiny: `none`.* \| .*\(.pth, \.safetensors\)\. \|$",
        pages["settings.md"],
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("link", "page", "leads_to"),
    [
        ("../unimmad/cli/train.py", "training.md", "commands/train.md"),
        ("../../unimmad/config", "api/config.md", "../settings.md"),
        ("tutorial.py", "index.md", "tutorial.md"),
        ("../CONTRIBUTING.md", "index.md", "contributing.md"),
        ("../unimmad", "index.md", "tree.md"),
        ("data.md", "index.md", "data.md"),
        ("https://a.b/tutorial.py", "index.md", "https://a.b/tutorial.py"),
    ],
)
def test_a_link_to_what_a_page_is_made_from_leads_to_the_page_in_the_site(link, page, leads_to) -> None:
    assert site_pages.with_made_pages(f"see [it]({link}).", page) == f"see [it]({leads_to})."


def test_every_made_page_has_a_file_to_link_to_in_a_checkout(pages) -> None:
    assert set(site_pages.MADE_FROM) == set(pages)
    assert all((ROOT / source).exists() for source in site_pages.MADE_FROM.values())


LINKING = [path for pattern in ("*.md", "docs/*.md", "docs/api/*.md") for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_of_the_repository(page) -> None:
    links = re.findall(r"\]\(([^()\s]+)\)", page.read_text())
    targets = {link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)}
    assert [target for target in sorted(targets) if not (page.parent / target).exists()] == []


def _public_types() -> list[type]:
    """The settings' sections, and all other types with fields that the API's pages show, but those of reports."""
    shown = re.findall(
        r"^::: (\S+)$", "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md")), re.MULTILINE
    )
    found = [resolve_name(":".join(name.rsplit(".", 1))) for name in shown if not name.startswith("unimmad.report.")]
    return [one for one in found if is_dataclass(one) or (isinstance(one, type) and issubclass(one, BaseModel))]


@pytest.mark.parametrize("public", _public_types(), ids=lambda public: public.__name__)
def test_every_field_of_a_public_type_has_a_sentence(public) -> None:
    """That a tooltip can show."""
    said = site_pages.field_docstrings(public)
    assert said
    assert [name for name, sentence in said.items() if not re.fullmatch(r"[A-Z0-9`].{15,}[.)]", sentence)] == []


def test_the_tree_has_a_line_for_every_folder(pages) -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "unimmad").rglob("*.py")}
    shown = set(re.findall(r"^\| `(\S+)/` \| \S", pages["tree.md"], re.MULTILINE))
    assert folders <= shown
    assert all((ROOT / folder).is_dir() for folder in shown)


def test_a_package_without_a_docstring_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(site_pages, "ROOT", tmp_path)
    (tmp_path / "__init__.py").write_text("from x import y\n")
    with pytest.raises(ValueError, match=r"__init__\.py has no docstring"):
        site_pages._first_sentence(tmp_path / "__init__.py")


def test_the_tutorials_page_has_all_of_the_scripts_code(pages) -> None:
    script = (ROOT / "docs" / "tutorial.py").read_text()
    shown = "\n".join(re.findall(r"^```python\n(.*?)^```", pages["tutorial.md"], re.MULTILINE | re.DOTALL))
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.Module(ast.parse(script).body[1:], []))
    assert "# Tutorial" in pages["tutorial.md"].splitlines()[0]
    assert "## Training" in pages["tutorial.md"].splitlines()
