"""Enough samples of every kind, and all of them readable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unimmad.audit.facts import SampleFacts
from unimmad.audit.findings import Finding, Severity, by_class, finding

FEW_TRAINING = 10
"""Normal images of a class, below which a model knows little of what is normal."""
FEW_TEST = 5
"""Test images of one label, below which a metric is mostly chance."""
UNEQUAL = 20.0
"""Times as many training images in the largest class as in the smallest."""


def check_unreadable(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Every file that does not open or does not fit, in one list."""
    for class_name, of_class in by_class(samples).items():
        problems = [problem for sample in of_class for problem in sample.problems]
        if problems:
            yield finding(
                Severity.ERROR,
                "unreadable",
                class_name,
                f"files that can't be used: {len(problems)}",
                "mend, replace or remove them",
                problems,
            )


def check_counts(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Too few training or test samples, and classes of very different size."""
    training: dict[str, int] = {}
    for class_name, of_class in by_class(samples).items():
        training[class_name] = sum(sample.split == "train" for sample in of_class)
        normal = sum(sample.split == "test" and not sample.anomalous for sample in of_class)
        anomalous = sum(sample.split == "test" and sample.anomalous for sample in of_class)
        yield from _too_few(class_name, training[class_name], normal, anomalous)
    smallest, largest = min(training, key=training.__getitem__), max(training, key=training.__getitem__)
    if training[smallest] and training[largest] > UNEQUAL * training[smallest]:
        yield finding(
            Severity.NOTE,
            "counts",
            smallest,
            f"training images: {training[smallest]}, while {largest} has {training[largest]}",
            "a model of all classes sees the small one seldom; see data.dataset_weights, or give it more images",
        )


def _too_few(class_name: str, training: int, normal: int, anomalous: int) -> Iterator[Finding]:
    if training < FEW_TRAINING:
        severity = Severity.WARNING if training else Severity.ERROR
        yield finding(severity, "counts", class_name, f"training images: {training}", "add normal images to train/good")
    missing = [name for name, count in (("normal", normal), ("anomalous", anomalous)) if not count]
    if missing:
        yield finding(
            Severity.NOTE,
            "counts",
            class_name,
            f"no {' and no '.join(missing)} test images",
            "metrics of this class are undefined; add some to measure it",
        )
    elif min(normal, anomalous) < FEW_TEST:
        yield finding(
            Severity.NOTE,
            "counts",
            class_name,
            f"test images: {normal} normal, {anomalous} anomalous",
            "its metrics are mostly chance",
        )
