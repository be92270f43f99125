"""What kind of image a modality is: said on the command line, or guessed from its folder's name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from unimmad.data.index import ANY_DTYPE, MAX_SCALE, MIN_SCALE, DatasetEntry, Modality, ModalityKind, ValueRange

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
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "um": 1e-6}
"""Metres of each."""
DISPARITY = "disparity"
_METRES = re.compile(rf"(.*?)({'|'.join(UNITS)})")
_USAGE = (
    "NAME=rgb|gray[:LOW:HIGH], NAME=skip or NAME=depth[:UNIT[:INVALID]], UNIT being m, cm, mm, um, a number of these "
    f"that one stored step is (0.25mm), {DISPARITY}, or METRES/{DISPARITY}"
)


@dataclass(frozen=True)
class ModalityChoice:
    """What the user said of one modality."""

    name: str
    kind: ChoiceKind
    """``skip`` leaves the modality out."""
    scale: float | None = None
    """Depth only, the bare number: metres of the type's largest value (of real numbers: of 1); None: the default."""
    invalid: float | None = None
    """Depth only; None with ``invalid_given``: every pixel is valid."""
    invalid_given: bool = False
    unit: float | None = None
    """Depth only: metres of the stored value 1, whatever the type."""
    disparity: bool = False
    """Depth only: metres are ``unit`` over the stored value."""
    low: float | None = None
    high: float | None = None
    """RGB and gray only: the stored values that are read as 0 and 1."""


def parse_modality(text: str) -> ModalityChoice:
    """Read ``NAME=rgb|gray[:LOW:HIGH]``, ``NAME=skip`` or ``NAME=depth[:UNIT[:INVALID]]``; INVALID may be ``none``.

    Raises:
        ValueError: anything else.
    """
    name, separator, rest = text.partition("=")
    kind, *values = rest.split(":")
    if not separator or not name or kind not in get_args(ChoiceKind):
        raise ValueError(f"--modality {text}: write {_USAGE}")
    if kind == "depth":
        return _parse_depth(name, values, text)
    if not values:
        return ModalityChoice(name, cast(ChoiceKind, kind))
    if kind == "skip" or len(values) != 2:
        raise ValueError(f"--modality {text}: a picture's range is two values; write {_USAGE}")
    low, high = (_number(value, text) for value in values)
    if low >= high:
        raise ValueError(f"--modality {text}: the range from {low:g} to {high:g} is empty; write the smaller one first")
    return ModalityChoice(name, cast(ChoiceKind, kind), low=low, high=high)


def _parse_depth(name: str, values: Sequence[str], text: str) -> ModalityChoice:
    if len(values) > 2:
        raise ValueError(f"--modality {text}: too many values; write {_USAGE}")
    given = len(values) == 2
    invalid = _number(values[1], text) if given and values[1] != "none" else None
    if not values:
        return ModalityChoice(name, "depth")
    scale = unit = None
    metres, slash, divisor = values[0].partition("/")
    disparity = DISPARITY in (values[0], divisor)
    if disparity:
        unit = _number(metres, text) if slash else None
    elif match := _METRES.fullmatch(values[0]):
        unit = _number(match[1] or "1", text) * UNITS[match[2]]
    else:
        scale = _number(values[0], text)
    for metres_given in (scale, unit):
        if metres_given is not None and not MIN_SCALE <= metres_given <= MAX_SCALE:
            raise ValueError(f"--modality {text}: the metres must lie between {MIN_SCALE:g} and {MAX_SCALE:g}")
    return ModalityChoice(name, "depth", scale, invalid, given, unit, disparity)


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
        if choice is None or choice.low is None or choice.high is None:
            return Modality(name=name, slot=0, kind=kind)
        return Modality(
            name=name, slot=0, kind=kind, ranges=(ValueRange(dtype=ANY_DTYPE, low=choice.low, high=choice.high),)
        )
    choice = choice or ModalityChoice(name, "depth")
    integer = dtype.kind in "iu"
    told = choice.unit is not None or choice.disparity
    default = INTEGER_DEPTH_SCALE if integer and not told else FLOAT_DEPTH_SCALE
    return Modality(
        name=name,
        slot=0,
        kind=kind,
        scale=default if choice.scale is None else choice.scale,
        invalid=choice.invalid if choice.invalid_given else INTEGER_DEPTH_INVALID if integer else None,
        unit=choice.unit,
        disparity=choice.disparity,
    )


def bare_number_note(choice: ModalityChoice | None, dtype: np.dtype) -> str:
    """What to say of a scale without a unit; empty where there is none."""
    if choice is None or choice.scale is None:
        return ""
    what = f"its largest value, {np.iinfo(dtype).max}," if dtype.kind in "iu" else "a stored 1"
    return (
        f"--modality {choice.name}=depth:{choice.scale:g}: a number without a unit is the metres of {what} in "
        f"{dtype.name}; if it is the metres of a stored 1, write depth:{choice.scale:g}m"
    )


def reading_of(modality: Modality) -> str:
    """How stored values are read, in words, for the summary; empty where as their number type says."""
    if modality.kind != "depth":
        return "".join(
            f", {'' if item.dtype == ANY_DTYPE else f'{item.dtype} '}{item.low:g} to {item.high:g}"
            for item in modality.ranges
        )
    invalid = f", invalid {modality.invalid}"
    if modality.disparity:
        return f", {modality.unit or 1:g} m over the stored value{invalid}"
    if modality.unit is not None:
        return f", a stored 1 is {modality.unit:g} m{invalid}"
    return f", scale {modality.scale:g} m{invalid}"


def read_otherwise(given: Mapping[str, DatasetEntry], trained: Mapping[str, DatasetEntry]) -> list[str]:
    """Modalities of ``given`` whose values mean other things than those of that name in training, in words."""
    known: dict[str, list[Modality]] = {}
    for entry in trained.values():
        for modality in entry.modalities:
            known.setdefault(modality.name, []).append(modality)
    return [
        f"{modality.name} of {dataset} ({modality.kind}{reading_of(modality)}; in training: "
        f"{known[modality.name][0].kind}{reading_of(known[modality.name][0])})"
        for dataset, entry in given.items()
        for modality in entry.modalities
        if modality.name in known and all(_meaning(modality) != _meaning(one) for one in known[modality.name])
    ]


def _meaning(modality: Modality) -> tuple[object, ...]:
    return modality.kind, modality.scale, modality.invalid, modality.unit, modality.disparity, modality.ranges


def assign_slots(modalities: Sequence[Modality], choices: Sequence[ModalityChoice]) -> tuple[Modality, ...]:
    """Give each modality its slot: first the user's, in their order, then rgb, gray, depth, each by name.

    Like kinds so tend to share a slot across datasets that train together.
    """
    given = {choice.name: position for position, choice in enumerate(choices)}
    kinds = get_args(ModalityKind)

    def rank(modality: Modality) -> tuple[int, int, str]:
        return given.get(modality.name, len(given)), kinds.index(modality.kind), modality.name

    ordered = sorted(modalities, key=rank)
    return tuple(modality.model_copy(update={"slot": slot}) for slot, modality in enumerate(ordered))
