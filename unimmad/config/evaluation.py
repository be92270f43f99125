"""The section ``evaluation``: what turns maps into scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from unimmad.config.fields import Integer, NotNegative, Positive, Real, Section, off_or_from
from unimmad.config.tiles import TileSettings

MAX_BLUR = 4095
"""Pixels."""

REFERENCE_SIZE = 256
"""Pixels; the side of the images that ``blur_sigma_at_256`` speaks of."""


Precision = Literal["fp32", "bf16"]
"""Of scoring. ``fp32``: without TF32, so that numbers are the same on every device, to rounding; ``bf16``: autocast of
the network over fp32 weights, while routing scores, distances, maps and image scores stay fp32."""


_PAPERS_BLUR = {"blur_kernel": 15, "blur_sigma": 4.0}


class Blur(NamedTuple):
    """A Gaussian in pixels, as maps are blurred by it."""

    kernel: int
    """Side of the square window; odd."""
    sigma: float
    """Standard deviation; 0 leaves a map as it is."""
    border: Literal["zeros", "mirror"] = "zeros"


class EvaluationSettings(Section):
    """What turns maps into scores; printed with every table, since this is where papers differ."""

    batch_size: Positive = 8
    """Images that are scored together; it changes speed and memory."""
    blur_kernel: Annotated[Integer, Field(gt=0, le=MAX_BLUR)] | None = None
    """Side of the blur's Gaussian window in pixels, at any image size; odd. 15 where nothing is said about the blur."""
    blur_sigma: Annotated[Real, AfterValidator(off_or_from(0.1)), Field(le=MAX_BLUR)] | None = None
    """Standard deviation of the blur in pixels, at any image size; 0 leaves the map as it is, and so would one below
    0.1. 4 where nothing is said about the blur."""
    blur_sigma_at_256: Annotated[Real, AfterValidator(off_or_from(0.1)), Field(le=REFERENCE_SIZE)] | None = None
    """In place of ``blur_kernel`` and ``blur_sigma``: the standard deviation at 256 x 256, which follows the image size
    (at 64 x 64 it is a quarter of that many pixels); the window reaches four of them to each side."""
    blur_border: Literal["zeros", "mirror"] = "zeros"
    """What lies beyond the map's edge while it is blurred: zeros (the paper), or the map mirrored."""
    top_share: Annotated[Real, Field(gt=0, le=1)] = 0.001
    """An image's score is the mean of this share of its map's largest values (at least one)."""
    score_pool: Annotated[Integer, Field(ge=1, le=1024)] = 1
    """Side of the window whose mean takes the place of each pixel before the largest values are taken; 1 leaves the map
    as it is (the paper)."""
    mask_resize: Literal["area", "nearest", "bilinear"] = "area"
    """How masks come to the model's size: ``area`` marks a pixel where any part of its area is marked, so that no
    defect vanishes; ``nearest`` (METRICS.md, the recipe ``paper``) loses small ones, which the report counts;
    ``bilinear`` is the paper's authors' rule. Checkpoints from before this setting go by ``nearest``."""
    resolution: Literal["model", "original"] = "model"
    """At what size pixels are measured: ``model`` (the papers), where masks come to the model's size; or ``original``,
    where each image's map comes to the size that the image and its mask are stored in."""
    tiles: TileSettings = TileSettings()
    """Tiles by which images are scored that are larger than one: ``size`` in pixels of the stored image (0: none),
    ``overlap``, and ``whole``, which joins the whole image, resized, to them."""
    pictures_per_class: NotNegative = 8
    """Heat maps drawn of each class."""
    leader_cache_mib: NotNegative = 256
    """Memory for routed leaders' composed kernels, kept from batch to batch (27.5 MB a leader at the paper's sizes)."""
    channels_last: bool = False
    """Lay out maps as ``training.channels_last`` does, in scoring."""
    compile: bool = False
    """Compile the network as ``training.compile`` does, for reports; prediction does not compile."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_papers_blur(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("blur_sigma_at_256") is not None:
            return values
        return values | {name: default for name, default in _PAPERS_BLUR.items() if values.get(name) is None}

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.blur_sigma_at_256 is not None:
            if given := [name for name in _PAPERS_BLUR if getattr(self, name) is not None]:
                raise ValueError(
                    f"{given[0]} is in pixels and blur_sigma_at_256 follows the image size: set one of them to null"
                )
        elif self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel {self.blur_kernel} must be odd")
        return self

    def blur(self, image_size: int) -> Blur:
        """What maps of ``image_size`` x ``image_size`` pixels are blurred by."""
        if self.blur_sigma_at_256 is None:
            assert self.blur_kernel is not None
            assert self.blur_sigma is not None
            return Blur(self.blur_kernel, self.blur_sigma, self.blur_border)
        sigma = self.blur_sigma_at_256 * image_size / REFERENCE_SIZE
        return Blur(2 * round(4 * sigma) + 1, sigma, self.blur_border)
