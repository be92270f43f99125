"""What an audit has to say: a list of findings, each with how bad it is and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from unimmad.audit.facts import SampleFacts

MOST_FILES = 200
"""That a finding names; its count tells how many there are."""


class Severity(IntEnum):
    """How bad a finding is."""

    NOTE = 0
    """Good to know."""
    WARNING = 1
    """Likely a mistake, or costs quality."""
    ERROR = 2
    """Results would be wrong."""

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that somebody should know before training."""

    severity: Severity
    check: str
    """Which check found it, in a word or two."""
    where: str
    """``DATASET/CLASS``, a dataset, or a modality of one."""
    what: str
    advice: str = ""
    """What to do; empty where there is nothing to be done."""
    files: tuple[str, ...] = ()
    """Those it is about, at most ``MOST_FILES``."""
    count: int = 0
    """How many samples it is about."""


def finding(
    severity: Severity, check: str, where: str, what: str, advice: str = "", files: Sequence[str] = ()
) -> Finding:
    """A finding about ``files``, of which it keeps the first."""
    kept = tuple(files[:MOST_FILES])
    return Finding(severity=severity, check=check, where=where, what=what, advice=advice, files=kept, count=len(files))


Check = Callable[[Sequence[SampleFacts]], Iterable[Finding]]
"""Looks at the facts of all samples."""


def by_class(samples: Sequence[SampleFacts]) -> dict[str, list[SampleFacts]]:
    """Samples by ``DATASET/CLASS``, in their order."""
    classes: dict[str, list[SampleFacts]] = {}
    for sample in samples:
        classes.setdefault(sample.class_name, []).append(sample)
    return classes


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """In the order to be told; those alike keep their order."""
    return sorted(findings, key=lambda found: -found.severity)


def worst(findings: Iterable[Finding]) -> Severity:
    """NOTE where there is none."""
    return max((found.severity for found in findings), default=Severity.NOTE)


def joined(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings that say the same of several places become one, where all are alike."""
    groups: dict[tuple[Severity, str, str, str], list[Finding]] = {}
    for found in findings:
        groups.setdefault((found.severity, found.check, found.what, found.advice), []).append(found)
    for (severity, check, what, advice), of_group in groups.items():
        places = list(dict.fromkeys(found.where for found in of_group))
        where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more, each"
        files = tuple(file for found in of_group for file in found.files)[:MOST_FILES]
        yield Finding(
            severity=severity,
            check=check,
            where=where,
            what=what,
            advice=advice,
            files=files,
            count=sum(found.count for found in of_group),
        )
