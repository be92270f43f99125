"""The learning rate by step (METHOD, Recipe)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unimmad.config import TrainingSettings


@dataclass(frozen=True)
class Schedule:
    """What changes while training; a pure function of the step, so a resumed run needs nothing else."""

    settings: TrainingSettings
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Cosine from the recipe's rate to 0, moving once an epoch or every step, after a linear warm-up."""
        if self.settings.schedule == "epoch":
            progress = self.epoch(step) / self.settings.epochs
        else:
            progress = step / self.total_steps
        rate = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        if step < self.settings.warmup_steps:
            rate *= (step + 1) / self.settings.warmup_steps
        return rate
