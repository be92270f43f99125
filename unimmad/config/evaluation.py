"""The section ``evaluation``: what turns maps into scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from unimmad.config.fields import Integer, NotNegative, Positive, Real, Section, off_or_from

MAX_BLUR = 4095
"""Pixels."""


Precision = Literal["fp32", "bf16"]
"""Of scoring. ``fp32``: without TF32, so that numbers are the same on every device, to rounding; ``bf16``: autocast of
the network over fp32 weights, while routing scores, distances, maps and image scores stay fp32."""


class EvaluationSettings(Section):
    """What turns maps into scores; printed with every table, since this is where papers differ."""

    batch_size: Positive = 8
    blur_kernel: Annotated[Integer, Field(gt=0, le=MAX_BLUR)] = 15
    """Side of the Gaussian's window in pixels; odd. Zero padding."""
    blur_sigma: Annotated[Real, AfterValidator(off_or_from(0.1)), Field(le=MAX_BLUR)] = 4.0
    """Standard deviation in pixels; 0 leaves the map as it is, and so would one below 0.1."""
    top_share: Annotated[Real, Field(gt=0, le=1)] = 0.001
    """An image's score is the mean of this share of its map's largest values (at least one)."""
    pictures_per_class: NotNegative = 8
    """Heat maps drawn of each class."""
    leader_cache_mib: NotNegative = 256
    """Memory for routed leaders' composed kernels, kept from batch to batch (27.5 MB a leader at the paper's sizes)."""
    channels_last: bool = False
    """As ``training.channels_last``."""
    compile: bool = False
    """As ``training.compile``; in reports, not in prediction."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel {self.blur_kernel} must be odd")
        return self
