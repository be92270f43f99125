"""Results of cells, made without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unimmad.comparing.results import CostEntry, MethodResults, Result
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.report import ClassResult, Report

COST = CostEntry(parameters=2_000_000, trained=500_000, gflop=1.5, images_per_second=20.0, peak_gib=0.5, device="a CPU")


def result(
    method: str,
    values: Mapping[str, float | None],
    seed: int = 0,
    minutes: float | None = 1.0,
    joined: str = "root of the sum of squares",
) -> Result:
    """One whose metrics of a class, ``DATASET/CLASS``, are all ``values``'s."""
    classes = []
    for name, value in values.items():
        dataset, _, class_name = name.partition("/")
        classes.append(ClassResult(dataset, "industry", class_name, 3, 4, dict.fromkeys(METRIC_KEYS, value)))
    report = Report({"modalities joined": joined}, tuple(classes))
    return Result(method, seed, report, steps=10, minutes=minutes, cost=COST)


def seeds_of(method: str, name: str, values: Sequence[float | None]) -> MethodResults:
    """A result for each value of the class ``name``, from seed 0 on."""
    return MethodResults(method, tuple(result(method, {name: value}, seed) for seed, value in enumerate(values)))
