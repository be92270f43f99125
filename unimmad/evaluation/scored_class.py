"""What is known of one class once all its samples are scored.

Letters: I samples of a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimmad.evaluation.expert_usage import ClassUsage, read_usage, usage_entry
from unimmad.evaluation.pixel_curves import PixelCurves, curves_entry, read_curves
from unimmad.evaluation.report import ClassResult, class_entry, read_class


@dataclass(frozen=True)
class ScoredClass:
    """One class's result, and what its curves and the expert map are drawn from."""

    result: ClassResult
    image_scores: NDArray[np.float64]
    """[I], in index order."""
    labels: NDArray[np.bool_]
    """[I], True where anomalous."""
    keys: tuple[str, ...]
    """I sample keys."""
    defects: tuple[str, ...]
    """I times ``good`` or the name of the defect."""
    curves: PixelCurves | None
    """None where a mask is missing or a label has no pixel."""
    usage: ClassUsage

    @property
    def names(self) -> tuple[str, str]:
        """Data set and class."""
        return self.result.dataset, self.result.class_name

    @property
    def class_name(self) -> str:
        """``DATASET/CLASS``."""
        return f"{self.result.dataset}/{self.result.class_name}"


def scored_entry(scored: ScoredClass) -> dict[str, Any]:
    """The class in JSON's types, exactly."""
    return {
        "class": class_entry(scored.result),
        "image_scores": scored.image_scores.tolist(),
        "labels": scored.labels.tolist(),
        "keys": scored.keys,
        "defects": scored.defects,
        "curves": None if scored.curves is None else curves_entry(scored.curves),
        "usage": usage_entry(scored.usage),
    }


def read_scored(content: Mapping[str, Any]) -> ScoredClass:
    """What :func:`scored_entry` gave; KeyError, TypeError or ValueError where it is of another form."""
    return ScoredClass(
        result=read_class(content["class"]),
        image_scores=np.array(content["image_scores"], dtype=np.float64),
        labels=np.array(content["labels"], dtype=bool),
        keys=tuple(content["keys"]),
        defects=tuple(content["defects"]),
        curves=None if content["curves"] is None else read_curves(content["curves"]),
        usage=read_usage(content["usage"]),
    )
