"""A recipe: every setting of a run, typed, frozen, documented."""

from __future__ import annotations

from typing import Literal

from unimmad.config.data import DataSettings
from unimmad.config.evaluation import EvaluationSettings
from unimmad.config.fields import Section
from unimmad.config.model import ModelSettings
from unimmad.config.training import TrainingSettings


class Recipe(Section):
    """Everything a run is made of, except where its data lie and where its output goes."""

    name: str
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def with_precision(self, precision: Literal["fp32", "bf16"]) -> Recipe:
        """The same but for ``training.precision``."""
        return self.model_copy(update={"training": self.training.model_copy(update={"precision": precision})})
