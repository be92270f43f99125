"""What the files about the project say of one another stays true: versions, pins, make targets, hooks."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import unimmad

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BOUND_TO_TORCH = {"torch", "torchvision"}
"""Pinned alike in all constraints: an older release may bring gigabytes of CUDA libraries."""
TARGETS = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def requirements(*extras: str) -> dict[str, Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(needed.name): needed for needed in map(Requirement, lines)}


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    found = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in found}


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


def targets_called(script: str) -> set[str]:
    """Of every ``make`` at a command's beginning; options and variables are not targets."""
    calls = re.findall(r"^\s*make\b([^#;&|\n]*)", script, re.MULTILINE)
    return {word for call in calls for word in call.split() if "=" not in word and not word.startswith("-")}


def test_the_version_is_stated_once() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "unimmad.__version__"}
    literal = re.compile(rf"""["']{re.escape(unimmad.__version__)}["']""")
    sources = [path for part in ("unimmad", "tools", "slurm") for path in (ROOT / part).rglob("*.py")]
    assert [path.name for path in sources if literal.search(path.read_text())] == ["__init__.py"]


def test_changelog_and_citation_have_the_version_and_one_date() -> None:
    entries = re.findall(
        r"^## \[([0-9][^\]]*)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert entries[0] == (unimmad.__version__, citation["date-released"].isoformat())
    assert citation["version"] == unimmad.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert [Version(version) for version, _ in entries] == sorted((Version(v) for v, _ in entries), reverse=True)


def test_the_pins_are_versions_that_pyproject_allows() -> None:
    pinned = pins("constraints.txt")
    for name, needed in requirements("train", "export", "serve", "medical", "docs", "dev").items():
        assert name in pinned, f"{name} is not pinned"
        assert needed.specifier.contains(pinned[name]), f"{name} {pinned[name]} is outside {needed.specifier}"


def test_the_lowest_pins_are_pyprojects_bounds() -> None:
    needed = requirements("train", "export", "serve", "medical")
    bounds = {
        name: Version(next(part.version for part in requirement.specifier if part.operator == ">="))
        for name, requirement in needed.items()
        if name not in BOUND_TO_TORCH
    }
    lowest = pins("constraints-lowest.txt")
    assert {name: version for name, version in lowest.items() if name not in BOUND_TO_TORCH} == bounds
    tested = pins("constraints.txt")
    assert {name: lowest[name] for name in BOUND_TO_TORCH} == {name: tested[name] for name in BOUND_TO_TORCH}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(workflow: Path) -> None:
    called = targets_called("\n".join(step.get("run", "") for step in steps(workflow)))
    assert called
    assert called <= TARGETS


def test_workflows_and_the_other_ci_run_the_same_tests() -> None:
    called = {target for path in WORKFLOWS for step in steps(path) for target in targets_called(step.get("run", ""))}
    assert targets_called((ROOT / ".ci" / "run").read_text()) == {"test"}
    assert called >= {"test", "lint", "docs", "wheel"}


def test_pages_name_targets_that_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        code = re.findall(r"^```\n(.*?)^```|`(make [^`]*)`", page.read_text(), re.MULTILINE | re.DOTALL)
        for block, span in code:
            called = targets_called(re.sub("#.*", "", block or span))
            assert called <= TARGETS, f"{page.name}: {called - TARGETS}"


def test_workflows_use_versions_of_python_and_files_that_the_project_has() -> None:
    classified = {line.rsplit(" ", 1)[1] for line in PYPROJECT["project"]["classifiers"] if " :: 3." in line}
    [matrix] = [
        job["strategy"]["matrix"]["include"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        if "strategy" in job
    ]
    assert {row["python"] for row in matrix} == classified
    assert PYPROJECT["project"]["requires-python"] == f">={min(classified, key=Version)}"
    assert all((ROOT / row["constraints"]).exists() for row in matrix)


def test_actions_are_pinned_to_commits() -> None:
    used = [step["uses"] for path in WORKFLOWS for step in steps(path) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", name)] == []


def test_hooks_are_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    linted = re.findall(r"^\t\$\(BIN\)/((?:ruff|mypy)[a-z ]*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [re.match(r"\.venv/bin/([a-z ]*)", hook["entry"])[1].strip() for hook in hooks] == [
        command.strip() for command in linted
    ]
