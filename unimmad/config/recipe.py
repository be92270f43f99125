"""A recipe: every setting of a run, typed, frozen, documented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal

from pydantic import model_validator
from typing_extensions import TypeVar

from unimmad.config.data import DataSettings
from unimmad.config.evaluation import EvaluationSettings
from unimmad.config.fields import Section
from unimmad.config.method import MethodSettings
from unimmad.config.model import ModelSettings
from unimmad.config.training import TrainingSettings

Model = TypeVar("Model", bound=MethodSettings, default=ModelSettings)
MethodTypes = Mapping[str, type[MethodSettings]]
"""By a method's name: its settings, the recipe's section ``model``."""

DEFAULT_METHOD = "unimmad"
UNIMMAD_ALONE: MethodTypes = {DEFAULT_METHOD: ModelSettings}


class Recipe(Section, Generic[Model]):
    """Everything a run is made of, except where its data lie and where its output goes."""

    name: str
    """Name of the recipe, and of its runs' folder where no other is given."""
    method: str = DEFAULT_METHOD
    """What is trained: ``unimmad``, or a method that it is compared with. The section ``model`` is its own."""
    model: Model
    """Sizes of the network, as its method has them."""
    data: DataSettings = DataSettings()
    """How shards are read."""
    training: TrainingSettings = TrainingSettings()
    """The optimisation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What turns maps into scores."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_sections(cls, values: Any) -> Any:
        return {"model": {}} | values if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check(self) -> Recipe[Model]:
        if self.evaluation.score_pool > self.model.image_size:
            raise ValueError(
                f"evaluation.score_pool {self.evaluation.score_pool} is larger than the image: "
                f"model.image_size is {self.model.image_size}"
            )
        if self.data.aspect == "crop" and (self.training.tiles.size or self.evaluation.tiles.size):
            raise ValueError("data.aspect crop looks at the middle alone, and tiles at all: take stretch or letterbox")
        for cache in ("resized_cache_gb", "feature_cache_gb"):
            if self.training.tiles.size and getattr(self.data, cache):
                raise ValueError(
                    f"data.{cache} keeps whole images, and training.tiles wants parts: set one of them to 0"
                )
        return self

    def with_precision(self, precision: Literal["fp32", "bf16"]) -> Recipe[Model]:
        """The same but for ``training.precision``."""
        return self.model_copy(update={"training": self.training.model_copy(update={"precision": precision})})
