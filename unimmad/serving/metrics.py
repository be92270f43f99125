"""What a running service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from unimmad.inference.prediction import Prediction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SAMPLES = (1, 2, 4, 8, 16, 32, 64)
_DECISIONS = {True: "anomalous", False: "normal", None: "undecided"}


class ServingMetrics:
    """Counters and histograms of one service, in a registry of its own."""

    def __init__(self, inside: Callable[[], float]) -> None:
        """``inside``: gives the requests that are in the house."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "unimmad_requests",
            "Samples that were sent, by the HTTP status of the answer",
            ["status"],
            registry=registry,
        )
        self._predictions = Counter(
            "unimmad_predictions",
            "Samples that were scored, by class (empty: not known) and decision",
            ["class_name", "decision"],
            registry=registry,
        )
        self._seconds = Histogram(
            "unimmad_request_seconds",
            "From a request's headers to its answer, of samples that were scored",
            buckets=SECONDS,
            registry=registry,
        )
        self._batch_samples = Histogram(
            "unimmad_batch_samples", "Samples that were scored together", buckets=SAMPLES, registry=registry
        )
        self._batch_seconds = Histogram(
            "unimmad_batch_seconds", "Time that a batch took to be scored", buckets=SECONDS, registry=registry
        )
        pending = Gauge("unimmad_requests_inside", "Requests arriving, waiting or in work", registry=registry)
        pending.set_function(inside)

    def answered(self, status: int) -> None:
        """A request was answered so; 499: its sender had left."""
        self._requests.labels(str(status)).inc()

    def predicted(self, prediction: Prediction, seconds: float) -> None:
        """A sample was scored, and its answer took this long. Classes are those of the model, and so not many."""
        self._predictions.labels(prediction.class_name or "", _DECISIONS[prediction.anomalous]).inc()
        self._seconds.observe(seconds)

    def scored(self, samples: int, seconds: float) -> None:
        """A batch was scored."""
        self._batch_samples.observe(samples)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
