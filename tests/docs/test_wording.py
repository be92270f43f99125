"""Words that are not the field's, or not natural English, stay out of documentation, comments and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    r"\blaws?\b": "rule; of the order of samples the order rule, of numbers over ranks parity",
    r"\bgoes? on behind\b": "continues after",
    r"\bhangs? on\b": "depends on",
    r"(?<!there )\b(is|are|was|were) no (?!longer\b)": "is not a",
    r"\banew\b": "again",
    r"\bdata sets?\b": "dataset",
}
"""By what is avoided, in any case and over line ends: what to write."""
TEXTS = ("*.md", "docs/*.md", "docs/api/*.md", ".github/ISSUE_TEMPLATE/*", "*.yml")
CODE = ("unimmad/**/*.py", "benchmarks/*.py", "tools/*.py", "slurm/*.py", "docs/*.py")


def avoided(text: str) -> Iterator[str]:
    """Each place, in its sentence, and what to write instead."""
    prose = re.sub(r"\s+(?:# )?", " ", text)
    for pattern, instead in INSTEAD.items():
        for found in re.finditer(pattern, prose, re.IGNORECASE):
            yield f"{prose[max(0, found.start() - 40) : found.end() + 20]!r}: write {instead}"


@pytest.mark.parametrize("pattern", [*TEXTS, *CODE])
def test_what_is_written_uses_the_fields_words(pattern: str) -> None:
    files = list(ROOT.glob(pattern))
    assert files
    assert [f"{path.relative_to(ROOT)}: {line}" for path in files for line in avoided(path.read_text())] == []


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("The file is no\n    image.", 1),
        ("# It is no\n# image.", 1),
        ("It is\n    # no image.", 1),
        ("There is no image; it is no longer there.", 0),
        ("two Data sets", 1),
        ('heads = ("dataset", "class")', 0),
    ],
)
def test_it_finds_them(text: str, places: int) -> None:
    assert len(list(avoided(text))) == places
