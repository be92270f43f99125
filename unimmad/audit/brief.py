"""An audit in brief, of shards just written: without features, and only what writing them does not say itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unimmad.audit.findings import Severity
from unimmad.audit.run import audit, default_workers
from unimmad.audit.samples import samples_of_shards
from unimmad.audit.screen import screen_lines

CHECKS = frozenset({"alignment", "counts", "label", "size", "small defects"})
"""Whose warnings are told."""
IMAGE_SIZE = 256
"""Pixels; most recipes' own."""
MOST = 10
"""Findings."""


def brief_audit(folder: Path, workers: int | None = None) -> Iterator[str]:
    """Lines for the screen; none where there is nothing to warn of.

    Args:
        folder: of shards.
        workers: processes that read and measure; 0: this one, None: by cores and samples.

    Raises:
        ValueError: as ``ShardSet.open``.
    """
    samples = samples_of_shards([folder])
    workers = default_workers(len(samples)) if workers is None else workers
    audited = audit(samples, image_size=IMAGE_SIZE, workers=workers, with_duplicates=False, brief=True)
    told = tuple(found for found in audited.findings if found.check in CHECKS)
    yield from screen_lines(replace(audited, findings=told), Severity.WARNING, MOST)
