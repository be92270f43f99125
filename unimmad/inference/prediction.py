"""What the model says of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unimmad.checkpoint.thresholds import is_above
from unimmad.config import Precision
from unimmad.data.edges import Overlap
from unimmad.inference.pictures import Picture


@dataclass(frozen=True)
class Prediction:
    """What the model says of one sample."""

    name: str
    """Name of the sample, as it was given."""
    class_name: str | None
    """Class as ``DATASET/CLASS``; None where it was not given or is not known to the model."""
    modalities: tuple[str, ...]
    """Modalities that were scored, in slot order."""
    files: dict[str, str]
    """Path of each image, by modality name; empty for arrays."""
    score: float
    """Image score, any finite number; the higher, the less normal."""
    map_HW: NDArray[np.float32]
    """Blurred anomaly map, float32 [H, W], of the size that the images came in; what is cropped away has its smallest
    value."""
    threshold: float | None
    """Score above which it is called anomalous; None where no threshold holds for this sample."""
    threshold_of: str | None
    """Class that the threshold was calibrated on, or ``all classes``; None without a threshold."""
    notes: tuple[str, ...]
    """Sentences that one should know beside this result."""
    pictures: tuple[tuple[str, Picture], ...]
    """Name and picture of each modality; empty where they were not asked for."""
    weights_HW: NDArray[np.float32] | None = None
    """What each pixel of the map weighed in it, 0 (not looked at) to 1; None where no region of interest was used."""
    roi: str | None = None
    """Digest of the region of interest."""
    precision: Precision = "fp32"
    """What the score was computed in."""
    threshold_promised: bool | None = None
    """Whether the threshold promises a false-alarm rate; those of classes added from a few images do not, nor that of
    all classes for one that gave no calibration image. None without a threshold."""
    limits: tuple[float, float] | None = None
    """Map values at the dark and the bright end of a picture's colours: from what normal maps usually have, with the
    threshold (without one: the highest score of known normal images) in the middle; None where nothing tells them."""
    statistics: Mapping[str, Mapping[str, float]] | None = None
    """By modality, plain numbers of its image that a monitor compares with calibration's; None where they were not
    asked for, or the class was not calibrated."""

    shares: dict[str, float] | None = None
    """Each modality's share of the score, adding up to 1; None where the method or an exported file can't say it."""
    modality_maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """What each modality adds to ``map_HW``, of its size; they add up to it. Empty for samples of one modality, of
    several views (tiles), and where ``shares`` is None."""

    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """How the edges of each modality but the first lie over the first one's."""
    misaligned: tuple[str, ...] = ()
    """The modalities that seem to lie elsewhere than the first (``Overlap.is_misaligned``), more so than in the normal
    images that the threshold was calibrated on."""

    @property
    def anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one. Scores as near to it as another batch size may
        bring them (``thresholds.TIES``) are not."""
        return None if self.threshold is None else is_above(self.score, self.threshold, self.precision)
