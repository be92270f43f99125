"""The learning rate by step (METHOD, Recipe)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unimmad.config import TrainingSettings

DROP_AT = 0.8
"""Share of the training from which the schedule ``drop`` takes ``DROP_TO`` of the rate."""
DROP_TO = 0.1


@dataclass(frozen=True)
class Schedule:
    """What changes while training; a pure function of the step, so a resumed run needs nothing else."""

    settings: TrainingSettings
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        return self.settings.steps or self.settings.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """The rate of the step with this number, counted from 0."""
        if self.settings.schedule == "warmup_cosine":
            return self.settings.learning_rate * self._warmup_cosine(step)
        rate = self.settings.learning_rate * self._fallen_to(step)
        if step < self.settings.warmup_steps:
            rate *= (step + 1) / self.settings.warmup_steps
        return rate

    def _fallen_to(self, step: int) -> float:
        """Share of the rate, without the warm-up."""
        match self.settings.schedule:
            case "constant":
                return 1.0
            case "drop":
                return DROP_TO if step >= DROP_AT * self.total_steps else 1.0
            case "epoch":
                return self._cosine(self.epoch(step) * self.steps_per_epoch / self.total_steps)
            case _:
                return self._cosine(step / self.total_steps)

    def _warmup_cosine(self, step: int) -> float:
        """Linear from 0 in the first step to 1 in the warm-up's last, then the cosine."""
        warmup = self.settings.warmup_steps
        if step < warmup:
            return step / max(1, warmup - 1)
        return self._cosine((step - warmup) / max(1, self.total_steps - warmup))

    def _cosine(self, progress: float) -> float:
        """From 1 at the start to the final share at the end."""
        final = self.settings.final_rate_fraction
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
