"""A calibration of two classes, made of draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from unimmad.checkpoint.monitoring import Described, ImageSet, MonitoringReference, ScoreSet, Values
from unimmad.monitoring.evidence import on_grid
from unimmad.monitoring.monitor import Seen

CLASSES = ("solids/cookie", "solids/rope")
SENSORS = ("rgb", "depth")
USUAL = {"brightness": (0.5, 0.02), "sharpness": (0.2, 0.01), "noise": (0.05, 0.002), "moved_right": (0.0, 0.01)}
"""Mean and deviation of each statistic."""


def values(found: Iterable[float]) -> Values:
    counts = sorted(Counter(map(on_grid, found)).items())
    return Values(values=[value for value, _ in counts], counts=[count for _, count in counts])


def image(draw: random.Random, moved: dict[str, float] | None = None) -> dict[str, float]:
    """One image's statistics, those of ``moved`` by so many deviations."""
    by = moved or {}
    return {
        name: draw.gauss(mean + by.get(name, 0) * deviation, deviation) for name, (mean, deviation) in USUAL.items()
    }


@pytest.fixture(scope="session")
def reference() -> MonitoringReference:
    draw = random.Random(0)
    images = []
    for class_name in CLASSES:
        for modality in SENSORS:
            drawn = [image(draw) for _ in range(60)]
            statistics = {name: values(one[name] for one in drawn) for name in USUAL}
            images.append(
                ImageSet(class_name=class_name, modality=modality, images=60, usual_of=0, statistics=statistics)
            )
    scores = [
        ScoreSet(class_name=name, modalities=list(SENSORS), scores=values(draw.gauss(1, 0.1) for _ in range(60)))
        for name in CLASSES
    ]
    return MonitoringReference(Described(weights="w", scores=scores, images=images))


@pytest.fixture
def predicted() -> Callable[..., Seen]:
    """The next prediction of a class; ``moved``: of its rgb image."""
    draw = random.Random(1)
    numbers = Counter[str]()

    def next_one(
        class_name: str | None = CLASSES[0],
        moved: dict[str, float] | None = None,
        score: float = 1.0,
        anomalous: bool | None = False,
        sensors: tuple[str, ...] = SENSORS,
    ) -> Seen:
        numbers[str(class_name)] += 1
        images = {name: image(draw, moved if name == "rgb" else None) for name in sensors}
        name = f"part{numbers[str(class_name)]}"
        return Seen(name, "2026-01-02T03:04:05+00:00", class_name, sensors, draw.gauss(score, 0.1), anomalous, images)

    return next_one
