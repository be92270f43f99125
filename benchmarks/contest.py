"""Who competes at what in ``benchmark.py model --against reference``, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workbench import FORMS, VARIANTS, Form
from unimmad.config import Precision

EVALUATION = "evaluation"
TRAINING = "training step"
DECODING = "C-MoE, inference"
DECODING_BACK = "C-MoE, forward and backward"
TASKS = (EVALUATION, TRAINING, DECODING, DECODING_BACK)
SCORING = (EVALUATION, DECODING)
"""Without TF32, as whatever scores."""


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    recipe: str
    device: str
    precision: Precision
    """Of ours; the reference computes in fp32."""
    modalities: int
    batch_size: int
    """Of ours in the second row of evaluation."""
    train_batch: int
    repeats: int
    variants: tuple[str, ...] = ()
    """Settings, of ``VARIANTS``, that evaluation and training step are measured with, too."""


@dataclass(frozen=True)
class Contestant:
    """A form at a task."""

    task: str
    form: Form
    batch: int

    @property
    def name(self) -> str:
        return f"{self.form}, batch {self.batch}"


@dataclass(frozen=True)
class Run:
    """What a contestant took."""

    seconds: float
    """Median of a run."""
    flops: int
    """Of a run."""
    share: float
    """Of the rate of a large matrix product in its precision."""


@dataclass(frozen=True)
class Peaks:
    """Most bytes at once that a contestant's process held."""

    tensors: int
    """Alive at once: the same in every run."""
    process: int
    """All of it: resident on a CPU, allocated by PyTorch on a GPU."""


@dataclass(frozen=True)
class TaskResult:
    """A task's contestants beside each other."""

    runs: dict[Contestant, Run]
    difference: float
    """Largest, between what the two forms gave for the same input."""
    largest: float
    """Absolute value in what the reference gave."""
    rates: dict[str, float]
    """Operations a second of the matrix product, by what it computes in: fp32, tf32 or bf16."""


def contestants(case: Comparison, task: str) -> list[Contestant]:
    """Those of a task; the first is the reference."""
    forms: list[Form] = [VARIANTS[setting] for setting in case.variants]
    if task == EVALUATION:
        batches = sorted({1, case.batch_size})
        ours = [Contestant(task, "ours", batch) for batch in batches]
        varied = [Contestant(task, form, case.batch_size) for form in forms]
        return [Contestant(task, "reference", 1), *ours, Contestant(task, "ours, no kernels kept", 1), *varied]
    batch = 1 if task == DECODING else case.train_batch
    return [Contestant(task, form, batch) for form in (*FORMS, *(forms if task == TRAINING else ()))]
