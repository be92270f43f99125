"""What kind of image a modality is: said on the command line, or guessed from its folder's name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from unimmad.data.index import MAX_SCALE, MIN_SCALE, Modality, ModalityKind

MAX_MODALITIES = 4
"""Modalities of one dataset: the model's input holds 4 x 3 channels (method, input embedding)."""

INTEGER_DEPTH_SCALE = 0.5
"""Metres that the largest value of an integer depth image stands for by default (method, recipe)."""
INTEGER_DEPTH_INVALID = 0.0
FLOAT_DEPTH_SCALE = 1.0
"""Depth stored as floating-point numbers is taken to be in metres, all pixels measured but those of ``depth_range``."""

FOLDER_NAMES: dict[ModalityKind, frozenset[str]] = {
    "rgb": frozenset({"rgb", "color", "colour", "image", "images", "img", "photo"}),
    "gray": frozenset(
        {
            *("gray", "grey", "mono", "infrared", "ir", "nir", "swir", "thermal", "xray", "ultrasound"),
            *("t1", "t2", "pd", "flair", "t1ce", "t1c", "t1post", "t1gd", "dwi", "adc", "mri", "ct", "oct"),
        }
    ),
    "depth": frozenset({"depth", "xyz", "disparity", "disp", "range", "height"}),
}

ChoiceKind = Literal["rgb", "gray", "depth", "skip"]
_USAGE = "NAME=rgb|gray|skip or NAME=depth[:SCALE[:INVALID]]"


@dataclass(frozen=True)
class ModalityChoice:
    """What the user said of one modality."""

    name: str
    kind: ChoiceKind
    """``skip`` leaves the modality out."""
    scale: float | None = None
    """Depth only; None: the default of the stored type."""
    invalid: float | None = None
    """Depth only; None with ``invalid_given``: every pixel is valid."""
    invalid_given: bool = False


def parse_modality(text: str) -> ModalityChoice:
    """Read ``NAME=rgb|gray|skip`` or ``NAME=depth[:SCALE[:INVALID]]``; INVALID may be ``none``.

    Raises:
        ValueError: anything else.
    """
    name, separator, rest = text.partition("=")
    kind, *numbers = rest.split(":")
    if not separator or not name or kind not in get_args(ChoiceKind):
        raise ValueError(f"--modality {text}: write {_USAGE}")
    if numbers and kind != "depth":
        raise ValueError(f"--modality {text}: only depth takes a scale and an invalid value; write {_USAGE}")
    if len(numbers) > 2:
        raise ValueError(f"--modality {text}: too many values; write {_USAGE}")
    scale = _number(numbers[0], text) if numbers else None
    if scale is not None and not MIN_SCALE <= scale <= MAX_SCALE:
        raise ValueError(
            f"--modality {text}: the scale (metres a stored unit) must lie between {MIN_SCALE:g} and {MAX_SCALE:g}"
        )
    invalid = _number(numbers[1], text) if len(numbers) == 2 and numbers[1] != "none" else None
    return ModalityChoice(name, cast(ChoiceKind, kind), scale, invalid, invalid_given=len(numbers) == 2)


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--modality {option}: {text!r} is not a finite number; write {_USAGE}")
    return value


def guess_kind(folder_name: str) -> ModalityKind | None:
    """The kind that a modality folder's name tells, or None. ``depth_map`` and ``Depth`` are depth, too."""
    lower = folder_name.lower()
    for word in (lower, *re.split(r"[^a-z0-9]+", lower)):
        for kind, names in FOLDER_NAMES.items():
            if word in names:
                return kind
    return None


def resolve_modality(name: str, kind: ModalityKind, choice: ModalityChoice | None, dtype: np.dtype) -> Modality:
    """The modality's entry for the index, on slot 0; its images' ``dtype`` sets the defaults of depth."""
    if kind != "depth":
        return Modality(name=name, slot=0, kind=kind)
    integer = dtype.kind in "iu"
    scale = INTEGER_DEPTH_SCALE if integer else FLOAT_DEPTH_SCALE
    invalid = INTEGER_DEPTH_INVALID if integer else None
    if choice is not None and choice.scale is not None:
        scale = choice.scale
    if choice is not None and choice.invalid_given:
        invalid = choice.invalid
    return Modality(name=name, slot=0, kind=kind, scale=scale, invalid=invalid)


def assign_slots(modalities: Sequence[Modality], declared: Sequence[str] = ()) -> tuple[Modality, ...]:
    """Give each modality its slot: first those that the layout declares, in its order, then rgb, gray, depth, by name.

    Nothing that a user says of a modality moves it. Like kinds so tend to share a slot across datasets that train
    together.
    """
    order = {name: position for position, name in enumerate(declared)}
    kinds = get_args(ModalityKind)

    def rank(modality: Modality) -> tuple[int, int, str]:
        return order.get(modality.name, len(order)), kinds.index(modality.kind), modality.name

    ordered = sorted(modalities, key=rank)
    return tuple(modality.model_copy(update={"slot": slot}) for slot, modality in enumerate(ordered))
