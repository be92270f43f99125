"""Which values are black and which white: the windows of a set of scans.

``ROOT/windows.json`` says it by modality, {"ct": {"center": 40, "width": 400}}, in the scans' own units (Hounsfield of
CT). Otherwise the window that all files of the modality carry; otherwise, but for CT, each series' own range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unimmad.data.layouts.medical.slices import Slice
from unimmad.data.layouts.scan import Notices
from unimmad.serialization.documents import read_limited
from unimmad.serialization.validation import first_problem

FILE = "windows.json"
MAX_BYTES = 2**20
RANGE_PERCENTILES = (0.5, 99.5)
"""Of the values of one series: the limits where no window is known."""
HOUNSFIELD_BELOW = -900.0
"""Air in CT is -1000; interpolation leaves some negative values in MR, too."""
EXAMPLE = '{"ct": {"center": 40, "width": 400}}'


class Window(BaseModel):
    """A window as DICOM says it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    center: float
    width: Annotated[float, Field(gt=0)]

    @property
    def limits(self) -> tuple[float, float]:
        """The values that become black and white."""
        return self.center - self.width / 2, self.center + self.width / 2


_WINDOWS = TypeAdapter(dict[str, Window])


def read_windows(root: Path) -> dict[str, Window]:
    """``ROOT/windows.json``, by modality; none where there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    try:
        return _WINDOWS.validate_json(read_limited(path, MAX_BYTES))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; wanted {EXAMPLE}") from None


def common_limits(
    root: Path, modality: str, slices: Sequence[Slice], windows: dict[str, Window], notices: Notices
) -> tuple[float, float] | None:
    """The limits for all slices of a modality; None: each series' own range, which is said.

    Raises:
        ValueError: CT without a window, or whose windows differ.
    """
    if modality in windows:
        return windows[modality].limits
    first = slices[0]
    other = next((found for found in slices if found.window != first.window), None)
    if other is None and first.window is not None:
        return Window(center=first.window[0], width=first.window[1]).limits
    remedy = f"say one in {root / FILE}, such as {EXAMPLE.replace('ct', modality)}"
    if tomogram := next((found for found in slices if found.kind == "CT"), None):
        if other is None:
            raise ValueError(f"{tomogram.path} has no window, which CT needs; {remedy}")
        raise ValueError(
            f"{first.path} has the window {_said(first)}, {other.path} {_said(other)}: CT needs one for all; {remedy}"
        )
    notices.add(f"modality {modality}: no common window, so each series has its own range; to change it, {remedy}")
    return None


def own_limits(values: np.ndarray, where: str) -> tuple[float, float]:
    """The range of a series by ``RANGE_PERCENTILES`` of its finite values, of any shape.

    Raises:
        ValueError: none is finite, or they look like CT's.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise ValueError(f"{where}: none of its values is a number; remove it")
    if float(finite.min()) < HOUNSFIELD_BELOW:
        raise ValueError(
            f"{where}: values down to {finite.min():g} look like Hounsfield units, which need a window; say it by "
            f"{FILE} beside the classes, such as {EXAMPLE}"
        )
    low, high = (float(value) for value in np.percentile(finite, RANGE_PERCENTILES))
    return (low, high) if high > low else (low, low + 1)


def _said(found: Slice) -> str:
    return "none" if found.window is None else f"{found.window[0]:g}/{found.window[1]:g}"
