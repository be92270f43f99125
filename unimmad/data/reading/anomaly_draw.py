"""Anomalies drawn onto training images at random, for a network that learns to give back what was there.

A rule like the order's: what is drawn at a position follows from (seed, epoch, position) and the images that stand
there, whoever reads them. NumPy's generators keep their numbers within a version of NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unimmad.data.drawn_anomalies import drawn_anomaly
from unimmad.data.reading.counter_rng import Purpose, counter_rng

_WORD_BITS = 64


@dataclass(frozen=True)
class AnomalyDraw:
    """Draws onto the same share of samples: on all of a sample's images, or, as often, on one of them alone."""

    seed: int
    """The training order's."""
    share: float
    """Of samples, 0 to 1."""

    def drawn(self, images_MCHW: Tensor, epoch: int, position: int) -> Tensor:
        """The images at a position, float32, normalised, with anomalies; themselves where none is drawn.

        What is pasted comes from the sample's own images, so that nobody has to read another sample.
        """
        whether, seed = counter_rng(self.seed, Purpose.ANOMALY, epoch, position, 2)
        if int(whether) >= self.share * 2**_WORD_BITS:
            return images_MCHW
        random = np.random.default_rng(int(seed))
        count = len(images_MCHW)
        chosen = range(count) if random.random() < 0.5 else [int(random.integers(count))]
        drawn_MCHW = images_MCHW.clone()
        for place in chosen:
            drawn_MCHW[place] = drawn_anomaly(images_MCHW[place], images_MCHW[random.integers(count)], random)[0]
        return drawn_MCHW
