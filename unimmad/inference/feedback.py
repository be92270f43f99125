"""What people say of predictions becomes thresholds and banks; called anomalies only ever check them.

Every image is scored again by the checkpoint as it is, before any bank grows: so scores are of banks that do not hold
the image, and predictions of another checkpoint are noticed. Banks only ever grow, which makes later scores of a class
smaller and never larger: a threshold taken from earlier scores keeps its promise (renewed_thresholds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from unimmad.checkpoint.calibration_scores import by_class, calibrated_digests, load_scores
from unimmad.checkpoint.feedback import CalledImage, Decision, FeedbackVersion, load_feedback
from unimmad.checkpoint.grown_banks import banked_digests, digests_of_added
from unimmad.checkpoint.thresholds import Thresholds, is_above
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample
from unimmad.inference.predicted import Predicted, some
from unimmad.inference.prediction import Prediction
from unimmad.inference.reading import pixels_digest
from unimmad.inference.renewed_thresholds import joined, renewed
from unimmad.inference.taking_in import taken_in
from unimmad.methods.growing import BankPlace, bank_digest
from unimmad.serialization.text import listed, one_line

SAME_SCORE = 0.02
"""Share of a score by which another device or precision may change it."""
TellDone = Callable[[], object]


@dataclass(frozen=True)
class CheckedAnomaly:
    """An image that was called anomalous, today or before."""

    image: CalledImage
    scored: bool
    """Whether its files are still there, and the same."""
    missed_before: bool | None
    """By the threshold, and the banks, before; None: no threshold holds for it, or it can't be scored."""
    missed_now: bool | None


@dataclass(frozen=True)
class Change:
    """What one call of feedback would do, before anything is written."""

    version: FeedbackVersion
    rows: dict[BankPlace, Tensor]
    """By which banks grew, on the CPU."""
    digests: dict[BankPlace, str]
    """``bank_digest`` of each."""
    bank_notes: dict[str, str]
    """By class, why its banks did not grow."""
    anomalies: tuple[CheckedAnomaly, ...]
    known: int
    """Samples of which the same was said before."""
    copies: int
    """Samples whose images are those of another one: they count once."""
    held: int
    """Samples called normal that are left out: their images are in a bank or in the calibration already."""


class FeedbackTaker:
    """Takes what was said of predictions of one checkpoint."""

    def __init__(self, folder: Path, detector: Detector, weights: str) -> None:
        """
        Args:
            folder: of the checkpoint.
            detector: opened from it; its model's banks are changed.
            weights: digest of its own weights.

        Raises:
            ValueError: it was not calibrated, or by a version that kept no scores; its feedback is damaged.
        """
        if detector.thresholds is None:
            raise ValueError(
                f"{folder} is not calibrated: run unimmad calibrate first, feedback makes its thresholds again"
            )
        assert isinstance(detector.engine, ModelEngine), "a checkpoint, no exported file"
        self.detector, self.engine, self.weights = detector, detector.engine, weights
        self.thresholds = detector.thresholds
        self.feedback = load_feedback(folder, weights, detector.thresholds)
        counted = self.feedback.counted
        self.of_added = digests_of_added(detector.added)
        self.images = self.feedback.images(self.of_added)
        """What was called before and counts, by digest."""
        self.in_banks = banked_digests(self.feedback, detector.added)
        self.calibrated = load_scores(folder, counted[0].before if counted else detector.thresholds)
        self.held = self.in_banks | calibrated_digests(folder)
        """Digests of images whose scores add nothing."""

    def take(
        self,
        predictions: Mapping[str, Predicted],
        decisions: Mapping[str, Decision],
        *,
        class_name: str | None = None,
        complete: bool = False,
        tell_done: TellDone = lambda: None,
    ) -> Change:
        """What follows from decisions; nothing is written.

        Args:
            predictions: those that were looked at.
            decisions: of some of them, by name.
            class_name: of those that were predicted without a class.
            complete: each of the predictions is among the decisions, and they are images as they came.
            tell_done: called for each image that is scored.

        Raises:
            ValueError: a sample can't be read, or is of another checkpoint, or of no class; or it was
                called normal before; or of a complete run some are in a bank or in the calibration already.
        """
        called: list[CalledImage] = []
        new: dict[str, Predicted] = {}
        known = 0
        held: list[str] = []
        once = _without_copies([predictions[name] for name in decisions], decisions)
        for digest, one in once.items():
            decision = decisions[one.name]
            before = self._before(one, digest, decision)
            if before is None and decision == "normal" and digest in self.held:
                held.append(one.name)
            elif before is None:
                new[digest] = one
            elif before.decision != decision or (complete and not before.as_they_came):
                whole = complete or before.as_they_came
                called.append(before.model_copy(update={"decision": decision, "as_they_came": whole}))
            else:
                known += 1
        if held and complete:
            raise ValueError(
                f"{len(held)} of {len(once)} images are in a bank or in the calibration already, so that this is not "
                f"a run of new ones: {some(held)}; leave --complete out, or predict images without them"
            )
        scored = self._scored(list(new.values()), class_name, tell_done)
        for (digest, one), prediction in zip(new.items(), scored, strict=True):
            class_name_of = self._class_of(one, prediction)
            called.append(
                CalledImage(
                    name=one.name,
                    class_name=class_name_of,
                    modalities=prediction.modalities,
                    files=one.files,
                    digest=digest,
                    decision=decisions[one.name],
                    score=prediction.score,
                    as_they_came=complete,
                    of_added=self.of_added.get(class_name_of, ""),
                )
            )
        change = self._change(called, known, len(decisions) - len(once))
        return replace(change, held=len(held))

    def _before(self, one: Predicted, digest: str, decision: Decision) -> CalledImage | None:
        """What was said of these images before, if it counts today; None: nothing.

        Raises:
            ValueError: they were called normal, and are called anomalous now.
        """
        image = self.images.get(digest)
        if image is not None and image.decision == "normal" and decision == "anomalous":
            number = max(version.number for version in self.feedback.counted if image in version.images)
            raise ValueError(
                f"{one_line(one.name)} was called normal before (version {number}): --undo takes whole versions "
                "back, the newest first; then call it anomalous"
            )
        return image

    def _scored(self, samples: Sequence[Predicted], class_name: str | None, tell_done: TellDone) -> list[Prediction]:
        """By the banks as they are.

        Raises:
            ValueError: one can't be read, or its score is not what the prediction says.
        """
        found = []
        for one in samples:
            prediction = self._score(one.name, one.files, one.class_name or class_name)
            if one.class_name is not None or not self.engine.looks_at_class:
                self._check_score(one, prediction)
            found.append(prediction)
            tell_done()
        return found

    def _score(self, name: str, files: Mapping[str, str], class_name: str | None) -> Prediction:
        return self.detector.predict(dict(files), class_name=class_name, name=name)

    def _check_score(self, one: Predicted, now: Prediction) -> None:
        apart = now.score - one.score
        close = abs(apart) <= SAME_SCORE * max(abs(one.score), abs(now.score))
        grew = any(version.grown for version in self.feedback.versions)
        if not close and not (grew and apart < 0):
            raise ValueError(
                f"{one_line(one.name)}: the prediction has a score of {one.score:.4g}, this checkpoint gives "
                f"{now.score:.4g}: it is of another checkpoint, or made with other --tiles or --roi, or the image has "
                "changed; predict again with this one"
            )

    def _class_of(self, one: Predicted, prediction: Prediction) -> str:
        if prediction.class_name is None:
            raise ValueError(
                f"{one_line(one.name)} was predicted without a class that the model knows, and thresholds are by "
                "class: name one with --class, of " + listed(self.detector.catalogue.classes, 5)
            )
        return prediction.class_name

    def _change(self, called: Sequence[CalledImage], known: int, copies: int) -> Change:
        anomalies = {
            image.digest: image
            for image in {**self.images, **{image.digest: image for image in called}}.values()
            if image.decision == "anomalous"
        }
        before = {digest: self._score_now(image) for digest, image in anomalies.items()}
        images, rows, notes = taken_in(self.detector, called, self.in_banks)
        all_images = {**self.images, **{image.digest: image for image in images}}
        after = self._renewed(all_images)
        version = FeedbackVersion(
            number=len(self.feedback.versions) + 1,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            weights=self.weights,
            images=tuple(images),
            before=self.thresholds,
            after=after,
        )
        now = {digest: self._score_now(image) for digest, image in anomalies.items()} if rows else before
        checked = tuple(
            CheckedAnomaly(
                image,
                now[digest] is not None,
                self._missed(image, before[digest], self.thresholds),
                self._missed(image, now[digest], after),
            )
            for digest, image in anomalies.items()
        )
        digests = {place: bank_digest(self.engine.model, place) for place in rows}
        return Change(version, rows, digests, notes, checked, known, copies, held=0)

    def _renewed(self, images: Mapping[str, CalledImage]) -> Thresholds:
        normal = [image for image in images.values() if image.decision == "normal"]
        whole, picked = (
            by_class(
                (image.class_name, image.modalities, image.score) for image in normal if image.as_they_came is wanted
            )
            for wanted in (True, False)
        )
        return renewed(self.thresholds, joined(self.calibrated, whole), picked)

    def _score_now(self, image: CalledImage) -> float | None:
        """By the banks as they are; None where its files are gone, or others."""
        try:
            same = pixels_digest(InputSample(image.name, dict(image.files))) == image.digest
        except ValueError:
            return None
        return self._score(image.name, image.files, image.class_name).score if same else None

    def _missed(self, image: CalledImage, score: float | None, thresholds: Thresholds) -> bool | None:
        if score is None:
            return None
        own = image.class_name in thresholds.classes
        found = thresholds.of_class(image.class_name, image.modalities) if own else thresholds.of_all(image.modalities)
        return None if found is None else not is_above(score, found.value, self.engine.precision)


def _without_copies(samples: Sequence[Predicted], decisions: Mapping[str, Decision]) -> dict[str, Predicted]:
    """By digest the first of the samples with the same images.

    Raises:
        ValueError: one can't be read, or of copies two things are said.
    """
    found: dict[str, Predicted] = {}
    for one in samples:
        first = found.setdefault(_digest(one), one)
        if decisions[first.name] != decisions[one.name]:
            raise ValueError(
                f"{one_line(first.name)} and {one_line(one.name)} have the same images, and are called both "
                f"{decisions[first.name]} and {decisions[one.name]}"
            )
    return found


def _digest(one: Predicted) -> str:
    """Of the pixels of a sample's images.

    Raises:
        ValueError: one can't be read.
    """
    if not one.files:
        raise ValueError(f"{one_line(one.name)} names no files: feedback is for predictions of image files")
    try:
        return pixels_digest(InputSample(one.name, dict(one.files)))
    except ValueError as error:
        raise ValueError(
            f"{one_line(one.name)}: {error}; feedback reads the images again, where they were when predicted: run it "
            "in the same folder, or leave this one out"
        ) from None
