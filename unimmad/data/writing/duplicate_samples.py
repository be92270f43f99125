"""Which samples of a shard folder are there more than once, in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimmad.data.index import DuplicateCounts, SampleEntry
from unimmad.data.writing.duplicates import HASH_VALUES, Look, exact_duplicates, near_duplicates
from unimmad.serialization.text import itemised

MOST_EXACT, MOST_NEAR = 20, 5
"""Sets and pairs that are named."""
MOST_OF_A_SET = 4
"""Samples that are named of those that are the same."""


@dataclass(frozen=True)
class FoundDuplicates:
    """What :func:`find_duplicates` found."""

    counts: DuplicateCounts
    notes: tuple[str, ...]
    """What one should know, a line each, with the files."""
    leak: str = ""
    """Test samples that are trained on, in one's own data: no figure of these would be true. Empty where none is."""


def find_duplicates(
    samples: Sequence[SampleEntry], looks: Sequence[Look], files: Sequence[str], own: frozenset[str]
) -> FoundDuplicates:
    """Compare all samples of all datasets.

    Args:
        samples: what was written.
        looks: of each.
        files: of each, the first image's file, for messages.
        own: the datasets that are not benchmarks.
    """
    blank = [[place] for place, look in enumerate(looks) if not look.digest]
    groups = exact_duplicates([look.digest or place for place, look in enumerate(looks)])
    leaks = [pair for group in groups for pair in _trained_and_tested(samples, group)]
    mixed = [group for group in groups if len({samples[place].anomalous for place in group}) > 1]
    split = [group for group in groups if {samples[place].split for place in group} >= {"train", "calibration"}]
    near = _near(samples, looks, groups)
    counts = DuplicateCounts(
        exact=sum(len(group) - 1 for group in groups), trained_and_tested=len(leaks), near=len(near)
    )

    def told(what: str, found: Sequence[Sequence[int]], sign: str = "=") -> str:
        items = [_in_words(samples, files, places, sign) for places in found]
        return itemised(f"{len(found)} {what}", items, MOST_NEAR if found is near else MOST_EXACT)

    refused = any(samples[place].dataset in own for pair in leaks for place in pair)
    lines: list[tuple[Sequence[Sequence[int]], str, str]] = [
        (groups, "sets of samples with the same pixels; keep one of each", "="),
        (mixed, "of these are normal and anomalous at once; one label is wrong", "="),
        (split, "of these are trained and calibrated on, so that thresholds come out too low", "="),
        ([] if refused else leaks, "test samples are trained or calibrated on; their figures are too high", "="),
        (blank, "samples show nothing: all of their images are of one value", ""),
        (near, "pairs of a class are nearly the same; look whether one was saved from the other", "~"),
    ]
    return FoundDuplicates(
        counts,
        tuple(told(what, found, sign) for found, what, sign in lines if found),
        told("test samples have the pixels of one that is trained or calibrated on", leaks)
        + "\nRemove one of each, or say --allow-duplicates"
        if refused
        else "",
    )


def _in_words(samples: Sequence[SampleEntry], files: Sequence[str], places: Sequence[int], sign: str) -> str:
    named = [f"{files[place]} ({samples[place].split} {samples[place].defect})" for place in places[:MOST_OF_A_SET]]
    more = f" and {len(places) - MOST_OF_A_SET} more" if len(places) > MOST_OF_A_SET else ""
    return f" {sign} ".join(named) + more


def _trained_and_tested(samples: Sequence[SampleEntry], group: Sequence[int]) -> list[tuple[int, int]]:
    """Each test sample of a group of equal ones, behind the first one that is not to test."""
    trained = [place for place in group if samples[place].split != "test"]
    return [(trained[0], place) for place in group if samples[place].split == "test"] if trained else []


def _near(
    samples: Sequence[SampleEntry], looks: Sequence[Look], groups: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Pairs of one class that are nearly, not exactly the same; of those that train and test share first."""
    copies = {place for group in groups for place in group[1:]}
    places = [place for place in range(len(samples)) if place not in copies]
    hashes = np.frombuffer(bytes.fromhex("".join(looks[place].hash for place in places)), dtype=np.uint8)
    classes = [(samples[place].dataset, samples[place].class_name) for place in places]
    found = [
        (places[pair.first], places[pair.second]) for pair in near_duplicates(hashes.reshape(-1, HASH_VALUES), classes)
    ]
    return sorted(found, key=lambda pair: len({samples[place].split == "test" for place in pair}) == 1)
