"""The pictures of one class, drawn by whichever rank: files' contents, since only rank 0 writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimmad.report.curve_figures import curve_figure
from unimmad.report.drawing import Limits, heat_limits
from unimmad.report.figures import SamplePicture, class_figure, png
from unimmad.report.scored_class import ScoredClass
from unimmad.report.selection import Reason
from unimmad.report.sensor_sets import most_shown


@dataclass(frozen=True)
class DrawnClass:
    """A class's files, and its sample for the overview."""

    curves: bytes
    """PNG."""
    heat_maps: bytes | None = None
    """PNG; None where no sample is to be shown."""
    typical: SamplePicture | None = None
    """Where a sample is to be shown."""
    limits: Limits = (0.0, 1.0)
    """The colour scale of its maps."""


def draw_class(scored: ScoredClass, samples: Sequence[SamplePicture]) -> DrawnClass:
    """Draw a class's curves and those samples' heat maps; ``samples`` may be none."""
    shown_I = scored.in_curves
    title, metrics = scored.class_name, scored.result.metrics
    if scored.result.sensor_sets:
        shown = most_shown(scored.result.sensor_sets)
        title, metrics = f"{title}, {' + '.join(shown.modalities)} alone", shown.metrics
    curves = png(curve_figure(title, scored.image_scores[shown_I], scored.labels[shown_I], scored.curves, metrics))
    if not samples:
        return DrawnClass(curves)
    # Maps of other sensors have values of another size, for which the curves' threshold says nothing.
    one_scale = scored.curves is not None and not scored.result.sensor_sets
    heat_maps = png(class_figure(samples, scored.curves.threshold if scored.curves and one_scale else None))
    return DrawnClass(curves, heat_maps, _typical(samples), heat_limits([picture.map_HW for picture in samples]))


def _typical(pictures: Sequence[SamplePicture]) -> SamplePicture:
    """An ordinary anomaly where there is one: failures would misrepresent the class."""
    for picture in pictures:
        if picture.note == Reason.ORDINARY_ANOMALY:
            return picture
    return next((picture for picture in pictures if picture.defect != "good"), pictures[0])
