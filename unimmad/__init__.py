"""UniMMAD: one anomaly-detection model for many classes and many imaging modalities.

Folders in the order of the data's way: ``data`` (sets on disk, shards, stream), ``model`` (plain torch),
``ranks`` (what processes tell each other), ``parallel`` (where experts live: DeepSpeed MoE), ``training``,
``checkpoint``, ``metrics``, ``report``, ``evaluation``, ``inference`` (one's own images: ``unimmad.Detector``),
``serving``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimmad.inference.detector import Detector
    from unimmad.inference.prediction import Prediction

__all__ = ["Detector", "Prediction", "__version__"]
__version__ = "0.2.0"
"""Stated here alone: pyproject.toml reads it, CHANGELOG.md and CITATION.cff are held to it by a test."""


def __getattr__(name: str) -> Any:
    """``Detector`` and ``Prediction`` are imported when they are first asked for: torch and timm take seconds."""
    if name in ("Detector", "Prediction"):
        from unimmad.inference import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
