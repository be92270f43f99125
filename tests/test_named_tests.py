"""The pages on hostile inputs and on security name the test behind each row: it is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCES = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("*.py")}


def untrue(page: str) -> list[str]:
    """What a page names that is nowhere. A test stands in the file that is named before it in its line, if one is."""
    wrong = []
    for line in page.splitlines():
        where = list(SOURCES)
        for path, test in re.findall(r"`(\w+/[\w/]+\.py|test_\w+\.py)`|`(test_\w+)`", line):
            if path:
                where = [path]
                wrong += [path] if path not in SOURCES and not (TESTS.parent / path).is_file() else []
            elif not any(f"def {test}(" in SOURCES.get(name, "") for name in where):
                wrong.append(f"{' or '.join(where[:1])}: {test}")
    return wrong


@pytest.mark.parametrize("name", ["reliability.md", "security.md"])
def test_every_test_that_a_page_names_exists(name):
    page = (TESTS.parent / "docs" / name).read_text()
    assert page.count("`test_") > 5
    assert untrue(page) == []


def test_what_is_nowhere_is_found():
    page = "| `model/test_tf32.py`: `test_nothing_of_the_kind` |\n`test_no_such_thing`, `no/such_file.py`\n"
    assert [entry.rpartition(" ")[2] for entry in untrue(page)] == [
        "test_nothing_of_the_kind",
        "test_no_such_thing",
        "no/such_file.py",
    ]
