"""What an exported file says of itself, so that it can be used without the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unimmad.checkpoint.thresholds import Thresholds
from unimmad.config import EvaluationSettings
from unimmad.data.index import ClassName, DatasetEntry, Modalities, Name
from unimmad.data.roi import Roi
from unimmad.data.views import Aspect
from unimmad.serialization.documents import parse_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Count, first_problem

FORMAT: Literal[1] = 1
IMAGES_INPUT = "images"
MAPS_OUTPUT = "maps"
SCORES_OUTPUT = "scores"


class ExportMetadata(BaseModel):
    """One entry of the file's metadata for each field, as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = FORMAT
    unimmad_version: str
    recipe: str
    """Its name."""
    step: Count
    """Of the checkpoint."""
    dataset: Name
    field: str
    """industry, medicine, ..."""
    modalities: Modalities
    """In the order of the input's second axis."""
    classes: tuple[ClassName, ...]
    """``DATASET/CLASS`` that the model was trained on."""
    image_size: Annotated[int, Field(gt=0, lt=2**16)]
    evaluation: EvaluationSettings
    """Blur and top share that the file computes; and the tiles that its user cuts, and joins again."""
    aspect: Aspect = "stretch"
    """How images that are not square become so before the file sees them."""
    roi: dict[Name, Roi] = {}
    """Where to look, by class: not in the graph, which is told no class; applied to its maps."""
    precision: Literal["fp32"] = "fp32"
    """What it computes in."""
    thresholds: Thresholds | None
    misses_class: bool = False
    """Whether the checkpoint's scores depend on a sample's class, of which the file is told nothing: it scores each
    image by the nearest class, and has no thresholds. Files of older versions do not say."""

    @model_validator(mode="after")
    def _check_classes(self) -> ExportMetadata:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is listed twice")
        other = next((name for name in self.classes if name.partition("/")[0] != self.dataset), None)
        if other is not None:
            raise ValueError(f"class {other} is none of dataset {self.dataset}")
        return self

    @property
    def datasets(self) -> dict[str, DatasetEntry]:
        """The one dataset, with the modalities that the file takes."""
        return {self.dataset: DatasetEntry(field=self.field, modalities=self.modalities, roi=self.roi)}

    def to_strings(self) -> dict[str, str]:
        """For a file format whose metadata are strings."""
        values = self.model_dump(mode="json", by_alias=True)
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], where: str) -> ExportMetadata:
        """Read what ``to_strings`` gave.

        Raises:
            ValueError: entries are missing or of another form: the file was not exported by this package.
        """
        try:
            return cls.model_validate(
                {key: parse_json(strings[key], key) for key in cls.model_fields if key in strings}
            )
        except ValueError as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
            raise ValueError(
                f"{where}: its metadata do not say what it needs ({reason}); make it again with unimmad export"
            ) from None
