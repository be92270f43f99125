"""Pages of the documentation that are made when the site is built (``make docs``), as a hook of MkDocs.

What the code knows is taken from it: each command's options from its parser, the settings of recipes with their
docstrings, a line a folder from each package's docstring, the tutorial's prose and code from the script.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import posixpath
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from unimmad.cli.add_class import adding_parser
from unimmad.cli.audit import audit_parser
from unimmad.cli.compare import compare_parser
from unimmad.cli.convert import conversion_parser
from unimmad.cli.evaluate_arguments import calibration_parser, evaluation_parser
from unimmad.cli.export import export_parser
from unimmad.cli.feedback import feedback_parser
from unimmad.cli.main import COMMANDS
from unimmad.cli.monitor import monitor_parser
from unimmad.cli.predict import prediction_parser
from unimmad.cli.review import review_parser
from unimmad.cli.serve import serve_parser
from unimmad.cli.shards import shards_parser
from unimmad.config import RECIPES_FOLDER, Recipe, load_recipe, parse_recipe
from unimmad.config.recipe import DEFAULT_METHOD
from unimmad.launching.options import launch_parser
from unimmad.methods.registry import METHOD_SETTINGS, METHODS
from unimmad.training.arguments import training_parser
from unimmad.training.grow_arguments import growing_parser

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HELP_COLUMNS = 100
PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "shards": shards_parser,
    "audit": audit_parser,
    "train": training_parser,
    "grow": growing_parser,
    "evaluate": evaluation_parser,
    "compare": compare_parser,
    "calibrate": calibration_parser,
    "add-class": adding_parser,
    "predict": prediction_parser,
    "review": review_parser,
    "feedback": feedback_parser,
    "monitor": monitor_parser,
    "serve": serve_parser,
    "export": export_parser,
    "convert": conversion_parser,
    "launch": launch_parser,
}
"""By command; a test holds the names to ``COMMANDS``."""
FROM_THE_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
MADE_FROM = {
    **{f"commands/{name}.md": f"unimmad/cli/{name.replace('-', '_')}.py" for name in PARSERS},
    **FROM_THE_ROOT,
    "settings.md": "unimmad/config",
    "tree.md": "unimmad",
    "tutorial.md": "docs/tutorial.py",
}
"""By page, what a link in ``docs/`` leads to: in a checkout there are no pages that the site makes."""
OTHER_FOLDERS = {
    "benchmarks": "what `python tools/benchmark.py` measures; not in the wheel",
    "docs": "these pages",
    "ds_configs": "DeepSpeed configurations, which the package holds too",
    "slurm": "`slurm/launch.py`, which is `unimmad launch`, and a site's defaults",
    "tests": "tests, in the package's own folders; `tests/slurm` starts a real SLURM",
    "tools": "scripts that are the commands of `unimmad`, and those for developers",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls this once it knows the files of ``docs/``; those made here join them."""
    from mkdocs.structure.files import File

    for name, text in generated_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs calls this with the text of each page."""
    return with_made_pages(markdown, page.file.src_uri)


def with_made_pages(markdown: str, name: str) -> str:
    """The text of the page ``name`` with links to what other pages are made from leading to those pages."""
    here = posixpath.dirname(name)
    pages = {posixpath.relpath(source, f"docs/{here}"): page for page, source in MADE_FROM.items()}

    def lead(found: re.Match[str]) -> str:
        page = pages.get(found[1])
        return f"]({posixpath.relpath(page, here or '.')})" if page else found[0]

    return re.sub(r"\]\(([^()\s#]+)\)", lead, markdown)


def generated_pages() -> dict[str, str]:
    """Markdown by path in the site."""
    pages = {f"commands/{name}.md": command_page(name, build()) for name, build in PARSERS.items()}
    pages["settings.md"] = settings_page()
    pages["tree.md"] = tree_page()
    pages["tutorial.md"] = tutorial_page((ROOT / "docs" / "tutorial.py").read_text())
    return pages | {page: _from_the_root(source) for page, source in FROM_THE_ROOT.items()}


def command_page(name: str, parser: argparse.ArgumentParser) -> str:
    """What the command is for, and its help."""
    parser.prog = f"unimmad {name}"
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=HELP_COLUMNS)
    summary = COMMANDS[name]
    said = parser.format_help().strip()
    return "\n".join([f"# unimmad {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```text", said, "```", ""])


def settings_page() -> str:
    """Every setting of a recipe: key, default, what shipped recipes say instead, and its docstring."""
    recipes = {
        path.stem: load_recipe(path.stem, methods=METHOD_SETTINGS) for path in sorted(RECIPES_FOLDER.glob("*.yaml"))
    }
    lines = [
        "# Settings of a recipe",
        "",
        "A recipe is a YAML file with these sections. `--recipe NAME` takes a shipped one "
        f"({', '.join(f'`{name}`' for name in recipes)}), `--recipe FILE` yours, and `--set SECTION.KEY=VALUE` "
        "overrides a single setting. Defaults are the paper's, where the paper has the setting. An unknown key is an "
        "error that names the nearest known one.",
        "",
    ]
    for section, settings in parse_recipe({"name": ""}, "the defaults"):
        if isinstance(settings, BaseModel):
            of_unimmad = {recipe: found for recipe, found in recipes.items() if found.method == DEFAULT_METHOD}
            shown = of_unimmad if section == "model" else recipes
            lines += _settings_table(section, settings, shown)
    for name, kind in METHODS.items():
        if name != DEFAULT_METHOD:
            of_method = {recipe: found for recipe, found in recipes.items() if found.method == name}
            lines += _settings_table(
                "model", kind.settings.model_validate({}), of_method, f"## model, of method {name}"
            )
    return "\n".join(lines)


def _settings_table(section: str, settings: BaseModel, recipes: dict[str, Recipe], heading: str = "") -> list[str]:
    rows = [
        _setting_row(f"{section}.{key}", getattr(settings, key), said, recipes)
        for key, said in field_docstrings(type(settings)).items()
    ]
    about = inspect.cleandoc(type(settings).__doc__ or "")
    heads = ("key", "default", "in recipes", "meaning")
    return [heading or f"## {section}", "", about, "", *_table(heads, rows), ""]


def _setting_row(key: str, default: object, said: str, recipes: dict[str, Recipe]) -> tuple[str, str, str, str]:
    section, name = key.split(".")
    values = {recipe: getattr(getattr(found, section), name) for recipe, found in recipes.items()}
    other = [f"{recipe}: `{value}`" for recipe, value in values.items() if value != default]
    return f"`{key}`", f"`{default}`", ", ".join(other), said


def field_docstrings(settings: type) -> dict[str, str]:
    """The string below each field, inherited ones too, which Python itself forgets; empty where there is none."""
    said: dict[str, str] = {}
    for part in reversed(settings.__mro__):
        if part.__module__.startswith("unimmad."):
            said |= _own_docstrings(part)
    return said


def _own_docstrings(part: type) -> dict[str, str]:
    [defined] = ast.parse(textwrap.dedent(inspect.getsource(part))).body
    assert isinstance(defined, ast.ClassDef)
    said = {name: "" for name, kind in inspect.get_annotations(part).items() if "ClassVar" not in str(kind)}
    for statement, following in zip(defined.body, defined.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))) if name in said:
                said[name] = " ".join(text.split())
    return said


def tree_page() -> str:
    """A line a folder, from its package's docstring, and which folder may import which."""
    packages = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "unimmad").rglob("__init__.py"))
    rows = [(f"`{folder}/`", _first_sentence(ROOT / folder / "__init__.py")) for folder in packages]
    others = [(f"`{folder}/`", about) for folder, about in OTHER_FOLDERS.items()]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    return "\n".join(
        [
            "# The tree",
            "",
            *_table(("package", "what is in it"), rows),
            "",
            *_table(("beside it", ""), others),
            "",
            "## Imports go one way",
            "",
            "A line may import those below it, those beside each other nothing of each other; `make lint` checks it.",
            "",
            "```text",
            *contract["layers"],
            "```",
            "",
        ]
    )


def _first_sentence(module: Path) -> str:
    said = ast.get_docstring(ast.parse(module.read_text()))
    if not said:
        raise ValueError(f"{module.relative_to(ROOT)} has no docstring, which the page of the tree shows")
    return re.split(r"(?<=\.)\s", " ".join(said.split()), maxsplit=1)[0]


def tutorial_page(script: str) -> str:
    """Comments that begin a line as prose, and what is between them as code; the docstring comes first."""
    parsed = ast.parse(script)
    first = parsed.body[0]
    said = ast.get_docstring(parsed) or ""
    body = script.splitlines()[first.end_lineno or 0 :]
    return "\n\n".join([said, *_prose_and_code(body)]) + "\n"


def _prose_and_code(lines: list[str]) -> Iterator[str]:
    for is_prose, group in groupby(lines, key=lambda line: line.startswith("# ") or line == "#"):
        block = list(group)
        if is_prose:
            yield "\n".join(line[2:] for line in block)
        elif text := "\n".join(block).strip("\n"):
            yield f"```python\n{text}\n```"


def _from_the_root(name: str) -> str:
    """A file of the root as a page: links into ``docs/`` and to files that are pages lead to those."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    for page, source in FROM_THE_ROOT.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
