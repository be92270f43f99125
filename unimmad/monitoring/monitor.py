"""Watches predictions: which class, modality and statistic has changed, since when, and what that points to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unimmad.checkpoint.monitoring import STATISTICS, MonitoringReference
from unimmad.monitoring.streams import SCORE, SHARE, Alarm, Direction, Place, Stream, StreamName

DEFAULT_FALSE_ALARMS = 0.01
DEFAULT_SHARE = 0.1
MOST_UNKNOWN = 1000
"""Different names that are counted."""
NO_CLASS = "no class"
FEWEST_IMAGES = 40
"""Calibration images and ordinary later ones together, before which even a gross change may go unnoticed."""

_CAUSES: Mapping[tuple[str, Direction], str] = {
    ("brightness", "higher"): "exposure: brighter",
    ("brightness", "lower"): "exposure: darker",
    ("noise", "higher"): "noise: more",
    ("sharpness", "lower"): "blur",
    ("noise", "lower"): "blur",
}
_TOWARDS: Mapping[tuple[str, Direction], str] = {
    ("moved_down", "higher"): "down",
    ("moved_down", "lower"): "up",
    ("moved_right", "higher"): "right",
    ("moved_right", "lower"): "left",
}
_LEFT_OVER: Mapping[tuple[str, Direction], str] = {
    ("contrast", "higher"): "contrast: more",
    ("contrast", "lower"): "contrast: less",
    ("sharpness", "higher"): "sharper",
}
"""Told where nothing else explains them: brightness, noise and blur change these, too."""
NO_CAUSE = "content: exposure, sharpness, noise and place are as usual"
SCORE_DRIFT = "score drift: the images' plain statistics are as usual, so look at the product"


@dataclass(frozen=True)
class Seen:
    """What a monitor needs of one prediction."""

    name: str
    time: str
    """ISO 8601, or empty."""
    class_name: str | None
    modalities: tuple[str, ...]
    score: float
    anomalous: bool | None
    images: Mapping[str, Mapping[str, float]]
    """By modality, statistics as ``ImageFacts.compared`` gives them."""


@dataclass(frozen=True)
class Verdict:
    """What has changed with one class's images of one modality, or with its scores."""

    class_name: str
    modalities: tuple[str, ...]
    drift: str
    """``image`` or ``score``."""
    causes: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    """In the order in which they were told."""

    @property
    def since(self) -> Place:
        """Where the change is likely to have begun: by what was noticed first."""
        return self.alarms[0].since


class DriftMonitor:
    """Compares predictions with calibration, one after the other, in constant memory. Threads may share it.

    If all images of a class, calibration's and later ones, could have come in any order, the probability that there
    is ever an alarm, in any class, is ``false_alarms`` at most, over unlimited time: every statistic of every class and
    modality has its even part of it.
    """

    def __init__(
        self,
        reference: MonitoringReference,
        false_alarms: float = DEFAULT_FALSE_ALARMS,
        anomalous_share: float = DEFAULT_SHARE,
    ) -> None:
        """
        Args:
            reference: what calibration kept.
            false_alarms: the probability that there is ever an alarm without a change.
            anomalous_share: what share of images may be called anomalous without that being a change.

        Raises:
            ValueError: a number is not between 0 and 1.
        """
        for what, value in (("false_alarms", false_alarms), ("anomalous_share", anomalous_share)):
            if not 0 < value < 1:
                raise ValueError(f"{what} {value:g} must lie between 0 and 1")
        self.reference = reference
        self.false_alarms = false_alarms
        self.anomalous_share = anomalous_share
        self.seen: Counter[str] = Counter()
        """Images by class."""
        self.unknown: Counter[str] = Counter()
        """Images that nothing is known to compare with, by what is not known."""
        self.alarms: list[Alarm] = []
        self._turn = threading.Lock()
        self.streams = self._new_streams()

    def add(self, seen: Seen) -> list[Alarm]:
        """Take in the next prediction; gives the alarms that it raises."""
        with self._turn:
            if seen.class_name not in self.reference.classes:
                self._count_unknown(seen.class_name or NO_CLASS)
                return []
            self.seen[seen.class_name] += 1
            place = Place(self.seen[seen.class_name], seen.name, seen.time)
            raised = [
                alarm
                for name, value in self._values(seen, seen.class_name)
                if (alarm := self.streams[name].add(value, place)) is not None
            ]
            self.alarms += raised
            return raised

    def verdicts(self) -> list[Verdict]:
        """All that has changed, what was noticed first of a class before its rest; image drift explains score drift."""
        by_images: dict[tuple[str, tuple[str, ...]], list[Alarm]] = {}
        by_scores: dict[tuple[str, tuple[str, ...]], list[Alarm]] = {}
        with self._turn:
            for alarm in self.alarms:
                kind = by_scores if alarm.stream.statistic in (SCORE, SHARE) else by_images
                kind.setdefault((alarm.stream.class_name, alarm.stream.modalities), []).append(alarm)
        found = [Verdict(*key, "image", image_causes(alarms), tuple(alarms)) for key, alarms in by_images.items()]
        explained = {class_name for class_name, _ in by_images}
        for key, alarms in by_scores.items():
            cause = "score drift: it goes with the change of the images" if key[0] in explained else SCORE_DRIFT
            found.append(Verdict(*key, "score", (cause,), tuple(alarms)))
        return found

    def few(self) -> list[str]:
        """The classes seen whose calibration images are too few for an early change to be noticed."""
        known = {one.class_name: one.images for one in self.reference.described.images}
        return [name for name in self.seen if known[name] < FEWEST_IMAGES]

    def _values(self, seen: Seen, class_name: str) -> Iterator[tuple[StreamName, float]]:
        sensors = self._sensors.get((class_name, frozenset(seen.modalities)))
        if sensors is None:
            self._count_unknown(f"{class_name} with {' + '.join(seen.modalities)}")
        elif seen.anomalous is not None:
            yield StreamName(class_name, sensors, SHARE), float(seen.anomalous)
            if not seen.anomalous:
                yield StreamName(class_name, sensors, SCORE), seen.score
        for modality, statistics in seen.images.items():
            for statistic, value in statistics.items():
                name = StreamName(class_name, (modality,), statistic)
                if name in self.streams:
                    yield name, value

    def _count_unknown(self, what: str) -> None:
        if what in self.unknown or len(self.unknown) < MOST_UNKNOWN:
            self.unknown[what] += 1

    def _new_streams(self) -> dict[StreamName, Stream]:
        described = self.reference.described
        usual: dict[StreamName, Mapping[float, int] | float] = {}
        self._sensors: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
        for one in described.scores:
            sensors = tuple(one.modalities)
            self._sensors[one.class_name, frozenset(sensors)] = sensors
            usual[StreamName(one.class_name, sensors, SCORE)] = one.scores.by_value
            usual[StreamName(one.class_name, sensors, SHARE)] = self.anomalous_share
        for image in described.images:
            for statistic in STATISTICS:
                if statistic in image.statistics:
                    name = StreamName(image.class_name, (image.modality,), statistic)
                    usual[name] = image.statistics[statistic].by_value
        limit = len(usual) / self.false_alarms
        return {name: Stream(name, limit, values) for name, values in usual.items()}


def image_causes(alarms: list[Alarm]) -> tuple[str, ...]:
    """What the changes of one modality's images point to."""
    found = {(alarm.stream.statistic, alarm.direction): alarm for alarm in alarms}
    shifted = [_TOWARDS[key] for key in found if key in _TOWARDS]
    causes = [f"shift: {' and '.join(shifted)}"] if shifted else []
    causes += dict.fromkeys(cause for key, cause in _CAUSES.items() if key in found)
    if not causes:
        causes = [cause for key, cause in _LEFT_OVER.items() if key in found]
    return tuple(causes) or (NO_CAUSE,)
