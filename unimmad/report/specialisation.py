"""How far leaders specialise: entropies of usage, and the overlap of classes, from who uses which leader.

A gate's leaders are parameters of its own: leader 3 of one gate has nothing to do with leader 3 of another. So
everything is computed gate by gate and only then averaged. Datasets weigh the same, however many images they have.

Letters: D datasets, C classes, G gates, L leaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimmad.report.expert_usage import ClassUsage, Shares, normalised, shares_by_dataset
from unimmad.report.formatting import UNDEFINED
from unimmad.report.table import Table


@dataclass(frozen=True)
class Specialisation:
    """The numbers of all tables below."""

    gates: tuple[str, ...]
    datasets: tuple[str, ...]
    classes: tuple[str, ...]
    """``DATASET/CLASS``."""
    load_GL: Shares
    """Share of the routed tokens that goes to each leader; each gate sums to 1."""
    dataset_share_GLD: Shares
    """Of each leader's load, the share that comes from each dataset; zeros for a leader that is never used."""
    leader_entropy_GL: Shares
    """Entropy of that share over its largest possible value: 0 serves one dataset, 1 all alike; NaN: never used."""
    dataset_entropy_GD: Shares
    """Entropy of each dataset's usage over its largest possible value: 1 uses all leaders alike. With K routed
    leaders a token it is at least log K / log L."""
    effective_leaders_GD: Shares
    """exp(entropy): over how many leaders, used alike, the dataset would be spread as much."""
    class_overlap_CC: Shares
    """Mean over gates of 1 - Jensen-Shannon divergence (base 2): 0 no leader in common, 1 the same usage."""


def specialisation(usages: Sequence[ClassUsage], gates: Sequence[str]) -> Specialisation:
    """Everything from the usage of at least one class; ``gates`` are the names of G."""
    by_dataset = shares_by_dataset(usages)
    share_DGL = np.stack(list(by_dataset.values()))
    share_GLD = normalised(share_DGL.transpose(1, 2, 0))
    entropy_GD = entropy(share_DGL.transpose(1, 0, 2))
    load_GL = share_DGL.mean(axis=0)
    leader_entropy_GL = _of_largest(entropy(share_GLD), len(by_dataset))
    return Specialisation(
        gates=tuple(gates),
        datasets=tuple(by_dataset),
        classes=tuple(f"{usage.dataset}/{usage.class_name}" for usage in usages),
        load_GL=load_GL,
        dataset_share_GLD=share_GLD,
        leader_entropy_GL=np.where(load_GL > 0, leader_entropy_GL, np.nan),
        dataset_entropy_GD=_of_largest(entropy_GD, share_DGL.shape[2]),
        effective_leaders_GD=np.exp(entropy_GD),
        class_overlap_CC=overlaps(np.stack([usage.shares for usage in usages])),
    )


def entropy(share: Shares) -> Shares:
    """Shannon entropy along the last axis, in nats; 0 log 0 is 0."""
    return (share * np.log(1.0 / np.where(share > 0, share, 1.0))).sum(axis=-1)


def overlaps(share_CGL: Shares) -> Shares:
    """1 - Jensen-Shannon divergence (base 2) of every two classes' usage, mean over gates: [C, C]."""
    entropy_CG = entropy(share_CGL)
    overlap_CC = np.empty((len(share_CGL), len(share_CGL)))
    for row, share_GL in enumerate(share_CGL):
        middle_CG = entropy(0.5 * (share_CGL + share_GL))
        divergence_CG = (middle_CG - 0.5 * (entropy_CG + entropy_CG[row])) / np.log(2)
        overlap_CC[row] = 1 - np.clip(divergence_CG, 0, 1).mean(axis=1)
    return overlap_CC


def leaders_csv(found: Specialisation) -> str:
    """One row a leader: its load, the entropy of its usage over datasets, and each dataset's share of it."""
    heads = ("gate", "leader", "load", "entropy over data sets", *(f"share of {name}" for name in found.datasets))
    rows = [
        (
            gate,
            str(leader),
            *_numbers((found.load_GL[number, leader], found.leader_entropy_GL[number, leader])),
            *_numbers(found.dataset_share_GLD[number, leader]),
        )
        for number, gate in enumerate(found.gates)
        for leader in range(found.load_GL.shape[1])
    ]
    return Table(heads, rows).to_csv()


def datasets_csv(found: Specialisation) -> str:
    """One row a dataset and gate: the entropy of its usage over leaders, and over how many it is spread."""
    heads = ("data set", "gate", "entropy over leaders", "effective leaders")
    rows = [
        (name, gate, *_numbers((found.dataset_entropy_GD[g, d], found.effective_leaders_GD[g, d])))
        for d, name in enumerate(found.datasets)
        for g, gate in enumerate(found.gates)
    ]
    return Table(heads, rows).to_csv()


def overlap_csv(found: Specialisation) -> str:
    """The overlap of every two classes, as a square table."""
    rows = [(name, *_numbers(row_C)) for name, row_C in zip(found.classes, found.class_overlap_CC, strict=True)]
    return Table(("class", *found.classes), rows).to_csv()


def gate_names(kernel_sizes: Sequence[int], levels: int) -> tuple[str, ...]:
    """Names of all gates, level by level, such as ``level 1, 3 x 3``."""
    return tuple(f"level {level}, {size} x {size}" for level in range(1, levels + 1) for size in kernel_sizes)


def _of_largest(entropy_of: NDArray[np.float64], outcomes: int) -> Shares:
    """With one possible outcome the entropy is 0 and so is this."""
    return entropy_of / np.log(max(outcomes, 2))


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [UNDEFINED if np.isnan(value) else f"{value:.6g}" for value in values]
