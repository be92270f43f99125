"""What an audit says on the screen: each finding with what to do, the worst first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from unimmad.audit.findings import Severity, joined, worst_first
from unimmad.audit.run import Audited
from unimmad.report.table import WIDTH
from unimmad.serialization.text import one_line

_FILES_ON_SCREEN = 3


def screen_lines(audited: Audited, least: Severity = Severity.NOTE, most: int = 40) -> Iterator[str]:
    """The findings that are as bad as ``least``, at most ``most`` of them."""
    told = [found for found in worst_first(joined(audited.findings)) if found.severity >= least]
    for found in told[:most]:
        head = f"{found.severity.word}: {one_line(found.where)}: {one_line(found.what)}"
        yield from textwrap.wrap(head, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        yield from (f"    {one_line(file)}" for file in found.files[:_FILES_ON_SCREEN])
        if found.files and found.count > _FILES_ON_SCREEN:
            yield f"    and {found.count - _FILES_ON_SCREEN} more"
        if found.advice:
            yield from textwrap.wrap(
                found.advice, WIDTH, initial_indent="    do: ", subsequent_indent="    ", break_on_hyphens=False
            )
    if len(told) > most:
        yield f"and {len(told) - most} more"


def summary_line(audited: Audited) -> str:
    """How many of what."""
    counts = {severity: sum(found.severity == severity for found in audited.findings) for severity in Severity}
    told = ", ".join(
        f"{count} {severity.word}{'' if count == 1 else 's'}"
        for severity, count in sorted(counts.items(), reverse=True)
    )
    classes = len({sample.class_name for sample in audited.samples})
    return f"{len(audited.samples)} samples, {classes} {'class' if classes == 1 else 'classes'}: {told}"
