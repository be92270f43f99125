"""What all images of a modality together tell while they are written: its range, its depth's meaning, what stands out.

The training images alone decide what goes into the index; what is said counts all splits.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from unimmad.data.decoded import PLANES_READ
from unimmad.data.depth_range import check_dtype
from unimmad.data.image_facts import ImageFacts
from unimmad.data.index import Modality, Split
from unimmad.data.layouts.source_set import SourceSet
from unimmad.data.modality import UNITS
from unimmad.data.value_range import MIXED_SHARE, SMALL_SHARE, found_range, listed_ranges, range_for, whole_range
from unimmad.serialization.text import listed

MOST_NAMED = 5
MIN_SPAN, MAX_SPAN = 0.001, 100.0
"""Metres: no foreground that is worth an inspection is flatter, or deeper, or farther away."""
ZERO_GAP = 0.1
"""Of the median: where no real number lies nearer to 0, those that are 0 were not measured."""


@dataclass
class _Files:
    """How many images show something, and the first of them."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < MOST_NAMED:
            self.names.append(name)

    def __str__(self) -> str:
        return listed([*self.names, *[""] * (self.count - len(self.names))], MOST_NAMED)


class ModalityFindings:
    """Of one modality of one dataset.

    Args:
        found: the dataset.
        modality: as given or guessed.
    """

    def __init__(self, found: SourceSet, modality: Modality) -> None:
        self.dataset = found.name
        self.modality = modality
        self.own = not found.published
        self.zero_is_open = not found.published and modality.name not in found.invalid_told
        self.images = 0
        self._shows: dict[str, _Files] = defaultdict(_Files)
        self._by_dtype: dict[str, _Files] = defaultdict(_Files)
        self._highs: dict[tuple[str, int], _Files] = defaultdict(_Files)
        """By number type and the power of two that the largest value stays below."""
        self._trained: dict[str, float] = {}
        """Largest value of the training images, by number type."""
        self._trained_depth: list[ImageFacts] = []

    def check(self, name: str, facts: ImageFacts) -> None:
        """
        Raises:
            ValueError: a depth image whose number type gives its values another meaning than the first one's.
        """
        if self.modality.kind == "depth" and self.own:
            first = next(iter(self._by_dtype), facts.dtype)
            check_dtype(np.dtype(facts.dtype), self.modality.model_copy(update={"dtypes": (first,)}), name)

    def add(self, name: str, split: Split, facts: ImageFacts) -> None:
        """Take in one image that passed ``check``."""
        self.images += 1
        self._by_dtype[facts.dtype].add(name)
        if facts.orientation != 1:
            self._shows["turned"].add(name)
        if facts.transparent:
            self._shows["transparent"].add(name)
        if facts.planes:
            self._shows["planes"].add(name)
        if self.modality.kind == "depth":
            if not facts.measured:
                self._shows["empty"].add(name)
            elif split == "train":
                self._trained_depth.append(facts)
        else:
            self._shows["gray" if facts.channels == 1 else "colour"].add(name)
            self._shows["four channels"].count += facts.channels == 4
            self._highs[facts.dtype, _power(facts.high)].add(name)
        if split == "train":
            self._trained[facts.dtype] = max(facts.high, self._trained.get(facts.dtype, 0.0))

    def settled(self) -> Modality:
        """The modality with what its training images tell."""
        modality = self.modality
        if not self.own:
            return modality
        if modality.kind != "depth":
            ranges = [found_range(np.dtype(dtype), high) for dtype, high in sorted(self._trained.items())]
            wanted = tuple(item for item in ranges if item and item.dtype != "uint8")
            return modality if modality.ranges else modality.model_copy(update={"ranges": wanted})
        update: dict[str, object] = {"dtypes": tuple(sorted(self._trained))}
        if self.zero_is_open and modality.invalid is None and self._zero_stands_apart():
            update["invalid"] = 0.0
        if modality.disparity and modality.unit is None and self._trained_depth:
            update["unit"] = median(facts.middle for facts in self._trained_depth)
        return modality.model_copy(update=update)

    def notices(self) -> list[str]:
        """What one should know of it, in whole lines."""
        name, total = self.modality.name, self.images
        lines = []
        for key, what in (
            ("turned", "are turned as their EXIF orientation says"),
            ("transparent", "have transparent pixels: alpha is left out, the colours beneath are read"),
            ("planes", f"store their channels as planes, {PLANES_READ}"),
            ("empty", "have no measured depth at all, and tell nothing"),
        ):
            if files := self._shows.get(key):
                lines.append(f"{name}: {files.count} of {total} images {what}: {files}")
        if self.own:
            lines += self._depth_notices() if self.modality.kind == "depth" else self._picture_notices()
        return [f"{self.dataset}: {line}" for line in lines]

    def _zero_stands_apart(self) -> bool:
        real = [facts for facts in self._trained_depth if facts.dtype.startswith("float")]
        return any(facts.zeros for facts in real) and all(
            facts.smallest >= ZERO_GAP * abs(facts.middle) for facts in real
        )

    def _picture_notices(self) -> list[str]:
        name, kind, lines = self.modality.name, self.modality.kind, []
        gray, colour = self._shows["gray"], self._shows["colour"]
        if gray.count and colour.count:
            odd, what = (gray, "gray, read as the same in all three channels") if kind == "rgb" else (
                colour, "in colours, read as gray by their luminance")  # fmt: skip
            lines.append(f"{name}: {odd.count} of {self.images} images are {what}: {odd}")
        if count := self._shows["four channels"].count:
            lines.append(f"{name}: {count} images have four channels, of which the first three are read")
        if len(self._by_dtype) > 1:
            counts = ", ".join(f"{files.count} of {dtype} ({files})" for dtype, files in self._by_dtype.items())
            lines.append(f"{name}: images are of several number types, each read by its own range: {counts}")
        settled = self.settled()
        if settled.ranges != self.modality.ranges:
            whole = " and ".join(f"0-{whole_range(np.dtype(item.dtype)):g}" for item in settled.ranges)
            say = f"--modality {name}={kind}:LOW:HIGH"
            lines.append(
                f"{name}: training images use less than 1/8 of their type's range {whole}, and so are read by the "
                f"range that was found, {listed_ranges(list(settled.ranges))}; {say} says another"
            )
        return lines + self._range_notices(settled)

    def _range_notices(self, settled: Modality) -> list[str]:
        """Images that do not fit the range, and a given range that hardly any uses."""
        name, lines = self.modality.name, []
        for dtype in self._by_dtype:
            if dtype == "uint8" and not self.modality.ranges:
                continue
            item = range_for(np.dtype(dtype), settled)
            low, high = (item.low, item.high) if item else (0.0, whole_range(np.dtype(dtype)))
            trained = self._trained.get(dtype, 0.0) - low
            dark, beyond = _Files(), _Files()
            for (other, power), files in self._highs.items():
                if other == dtype and 2.0**power - low <= MIXED_SHARE * (high - low) * (1 + 1e-3):
                    _join(dark, files)
                elif other == dtype and 2.0 ** (power - 1) > high:
                    _join(beyond, files)
            if 0 < trained < SMALL_SHARE * (high - low):
                lines.append(
                    f"{name}: training images use less than 1/8 of the range {low:g} to {high:g} (the largest value "
                    f"is {trained + low:g}); if that is too wide, say --modality {name}={self.modality.kind}:LOW:HIGH"
                )
            elif dark.count:
                lines.append(
                    f"{name}: {dark.count} of {self._by_dtype[dtype].count} images of {dtype} use at most a quarter of "
                    f"the range {low:g} to {high:g} that the others are read by; are they of fewer bits? {dark}"
                )
            if beyond.count:
                lines.append(
                    f"{name}: {beyond.count} images of {dtype} go beyond the range {low:g} to {high:g} and are "
                    f"clipped: {beyond}"
                )
        return lines

    def _depth_notices(self) -> list[str]:
        name, settled, lines = self.modality.name, self.settled(), []
        if settled.invalid != self.modality.invalid:
            lines.append(
                f"{name}: 0 counts as not measured, since no value lies near it; --modality {name}=depth:UNIT:none "
                "says that it is a depth"
            )
        if len(self._by_dtype) > 1:
            counts = ", ".join(f"{files.count} of {dtype} ({files})" for dtype, files in self._by_dtype.items())
            lines.append(f"{name}: images are of several number types, in which a value means the same: {counts}")
        if settled.disparity:
            if settled.unit != self.modality.unit:
                lines.append(
                    f"{name}: disparities count as if their median, {settled.unit:g}, lay 1 m away; "
                    f"--modality {name}=depth:METRES/disparity gives focal length (pixels) times baseline"
                )
        elif self._trained_depth:
            lines += self._implausible(settled)
        return lines

    def _implausible(self, settled: Modality) -> list[str]:
        low, middle, high = (median(facts.metres[place] for facts in self._trained_depth) for place in range(3))
        if _plausible(low, middle, high):
            return []
        stored = median(facts.middle for facts in self._trained_depth)
        factors = {unit: metres * stored / middle for unit, metres in UNITS.items()} if middle else {}
        fitting = [unit for unit, by in factors.items() if _plausible(low * by, middle * by, high * by)]
        fitting.sort(key=list(UNITS).index)
        preferred = "mm" if "mm" in fitting else next(iter(fitting), "")
        advice = f"say --modality {settled.name}=depth:UNIT"
        if preferred:
            by = factors[preferred]
            advice = (
                f"if stored values are in {preferred}, say --modality {settled.name}=depth:{preferred} (then "
                f"{_metres((high - low) * by)} deep, {_metres(abs(middle) * by)} away)"
            )
        return [
            f"{settled.name}: of the middle training image the foreground is {_metres(high - low)} deep and "
            f"{_metres(abs(middle))} away, which is hardly meant; stored values are about {stored:g} "
            f"({' and '.join(settled.dtypes)}): {advice}"
        ]


def _plausible(low: float, middle: float, high: float) -> bool:
    return MIN_SPAN <= high - low <= MAX_SPAN and abs(middle) <= MAX_SPAN


def _metres(value: float) -> str:
    return f"{value:.3g} m" if value >= 1 else f"{value * 1000:.3g} mm"


def _power(value: float) -> int:
    """The smallest n with value < 2 ** n; of integers, their bits."""
    return int(np.frexp(value)[1]) if value > 0 else -100


def _join(files: _Files, others: _Files) -> None:
    files.count += others.count
    files.names = (files.names + others.names)[:MOST_NAMED]
