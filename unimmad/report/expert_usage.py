"""Which leaders the tokens of a test set went to, counted class by class and modality by modality.

Letters: M modalities of a class, G gates (every level's branches, in the model's order), L leaders, T tokens
(sample, modality), K routed leaders, R rows (dataset, modality).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unimmad.data.sample import Sample
from unimmad.model.routing import Routing
from unimmad.serialization.validation import Count, Entry

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class ClassUsage:
    """How often the tokens of one class were routed to each leader."""

    dataset: str
    class_name: str
    """Without the dataset's name."""
    modalities: tuple[str, ...]
    """In slot order."""
    counts_MGL: Counts
    """Times that a gate sent a token of this modality to this leader; each token counts once for each of its K."""
    tokens_M: Counts
    """Tokens of each modality."""

    @property
    def shares(self) -> Shares:
        """[G, L]: the class's usage of each gate's leaders, modalities with the same weight; a gate sums to 1."""
        return normalised(normalised(self.counts_MGL).mean(axis=0))


class UsageEntry(Entry):
    """The usage in JSON's types."""

    dataset: str
    class_name: str = Field(alias="class")
    modalities: list[str]
    counts: list[list[list[Count]]]
    """By modality, gate and leader."""
    tokens: list[Count]


class UsageCounter:
    """Counts the routing of one class's batches."""

    def __init__(self, class_name: str, leaders: int) -> None:
        """``class_name`` is ``DATASET/CLASS``; ``leaders`` are those of each gate."""
        self._dataset, _, self._class_name = class_name.partition("/")
        self._leaders = leaders
        self._counts: dict[tuple[int, str], Counts] = {}
        self._tokens: dict[tuple[int, str], int] = {}

    def add(self, samples: Sequence[Sample], leaders_TGK: NDArray[np.int64]) -> None:
        """Count one batch.

        Args:
            samples: the batch's; their tokens are listed sample by sample, in slot order.
            leaders_TGK: see :func:`chosen_leaders`.
        """
        modality_T = [key for sample in samples for key in zip(sample.slots, sample.modalities, strict=True)]
        for key in sorted(set(modality_T)):
            chosen_TGK = leaders_TGK[[token == key for token in modality_T]]
            counts_GL = _counted(chosen_TGK, self._leaders)
            self._counts[key] = self._counts.get(key, 0) + counts_GL
            self._tokens[key] = self._tokens.get(key, 0) + len(chosen_TGK)

    def usage(self) -> ClassUsage:
        """What was counted of at least one batch."""
        keys = sorted(self._counts)
        return ClassUsage(
            self._dataset,
            self._class_name,
            tuple(name for _, name in keys),
            np.stack([self._counts[key] for key in keys]),
            np.array([self._tokens[key] for key in keys], dtype=np.int64),
        )


def chosen_leaders(routings: Sequence[Sequence[Routing]]) -> NDArray[np.int64]:
    """The leaders of a batch's tokens [T, G, K], on the host; ``routings`` by level, then branch."""
    return np.stack([routing.leaders_TK.cpu().numpy() for level in routings for routing in level], axis=1)


def usage_entry(usage: ClassUsage) -> dict[str, Any]:
    """The usage in JSON's types."""
    return {
        "dataset": usage.dataset,
        "class": usage.class_name,
        "modalities": list(usage.modalities),
        "counts": usage.counts_MGL.tolist(),
        "tokens": usage.tokens_M.tolist(),
    }


def read_usage(entry: UsageEntry) -> ClassUsage:
    """What :func:`usage_entry` gave.

    Raises:
        ValueError: the counts are not those of as many modalities and of the same leaders at each gate.
    """
    counts_MGL = np.array(entry.counts, dtype=np.int64)
    if counts_MGL.ndim != 3 or not len(entry.modalities) == len(entry.tokens) == len(counts_MGL):
        raise ValueError(f"the usage of {entry.class_name} is not complete")
    return ClassUsage(
        dataset=entry.dataset,
        class_name=entry.class_name,
        modalities=tuple(entry.modalities),
        counts_MGL=counts_MGL,
        tokens_M=np.array(entry.tokens, dtype=np.int64),
    )


@dataclass(frozen=True)
class UsageRow:
    """The usage of one modality of one dataset: a row of the expert map."""

    dataset: str
    modality: str
    frequency_GL: Shares
    """Share of the row's tokens that each gate sends to each leader; a gate's sum to K."""


def rows_by_modality(usages: Sequence[ClassUsage]) -> tuple[UsageRow, ...]:
    """One row for each dataset and modality, in order of first appearance; all its tokens have the same weight."""
    counts: dict[tuple[str, str], Counts] = {}
    tokens: dict[tuple[str, str], int] = {}
    for usage in usages:
        for modality, counts_GL, count in zip(usage.modalities, usage.counts_MGL, usage.tokens_M, strict=True):
            key = (usage.dataset, modality)
            counts[key] = counts.get(key, 0) + counts_GL
            tokens[key] = tokens.get(key, 0) + int(count)
    return tuple(UsageRow(*key, counts[key] / tokens[key]) for key in counts)


def shares_by_dataset(usages: Sequence[ClassUsage]) -> dict[str, Shares]:
    """Usage [G, L] of each dataset, its classes with the same weight; each gate sums to 1."""
    of_dataset: dict[str, list[Shares]] = {}
    for usage in usages:
        of_dataset.setdefault(usage.dataset, []).append(usage.shares)
    return {name: np.mean(shares, axis=0) for name, shares in of_dataset.items()}


def normalised(values: NDArray) -> Shares:
    """Non-negative numbers divided by their sum along the last axis; rows of zeros stay zero."""
    total = values.sum(axis=-1, keepdims=True)
    return values / np.where(total > 0, total, 1)


def _counted(leaders_TGK: NDArray[np.int64], leaders: int) -> Counts:
    gates = leaders_TGK.shape[1]
    offset_G1 = leaders * np.arange(gates)[:, None]
    return np.bincount((leaders_TGK + offset_G1).reshape(-1), minlength=gates * leaders).reshape(gates, leaders)
