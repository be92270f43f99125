"""What feedback changes, in lines for the screen: thresholds, banks, and the called anomalies that are missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from unimmad.checkpoint.conformal import images_needed
from unimmad.checkpoint.feedback import CalledImage, FeedbackVersion
from unimmad.checkpoint.thresholds import Threshold, Thresholds
from unimmad.inference.feedback import Change, CheckedAnomaly
from unimmad.inference.predicted import some
from unimmad.serialization.text import one_line


def change_lines(change: Change, counted: Sequence[CalledImage], dry_run: bool = False) -> list[str]:
    """What to say of a call of feedback.

    Args:
        change: what it does.
        counted: all images whose scores count after it, of earlier calls too.
        dry_run: it is not done.
    """
    version = change.version
    lines = [_counts(version, change.known, change.copies, change.held)]
    concerned = {image.class_name for image in version.images} | {one.image.class_name for one in change.anomalies}
    for name in sorted(concerned | _changed(version)):
        lines += [f"{one_line(name)}: {line}" for line in _of_class(name, change, counted)]
    if rows := sum(map(len, change.rows.values())):
        grew, are = ("would grow", "would be") if dry_run else ("grew", "are")
        lines.append(f"banks {grew} by {rows} patches: later scores of their classes, named, {are} lower, never higher")
    return [*lines, *(f"note: {note}" for note in _notes(version))]


def version_line(version: FeedbackVersion, counts: bool) -> str:
    """One version in a list of them; ``counts``: whether it is in today's thresholds."""
    moved = [
        f"{one_line(name)} {before.value:.4g} -> {after.value:.4g}"
        for name, after in version.after.classes.items()
        if (before := version.before.classes.get(name)) is not None and before.value != after.value
    ]
    said = f"version {version.number}, {version.time}: {_counts(version)}"
    what = [f"thresholds {', '.join(moved)}"] if moved else ["no threshold changed"]
    if version.grown:
        what.append("banks grew")
    if not counts:
        what.append("calibrated again since: its scores no longer count")
    return f"{said}; {'; '.join(what)}"


def _changed(version: FeedbackVersion) -> set[str]:
    return {name for name, found in version.after.classes.items() if version.before.classes.get(name) != found}


def _counts(version: FeedbackVersion, known: int = 0, copies: int = 0, held: int = 0) -> str:
    called = Counter(image.decision for image in version.images)
    said = f"{called['normal']} called normal, {called['anomalous']} anomalous"
    more = [
        f"{known} said before" if known else "",
        f"{copies} copies, which count once" if copies else "",
        f"{held} left out, which a bank or the calibration has already" if held else "",
    ]
    more = [one for one in more if one]
    return f"{said} ({', '.join(more)})" if more else said


def _of_class(name: str, change: Change, counted: Sequence[CalledImage]) -> Iterator[str]:
    version = change.version
    for sensors in _sensor_sets(name, version):
        before, after = (_found(thresholds, name, sensors) for thresholds in (version.before, version.after))
        normal = [
            image
            for image in counted
            if image.class_name == name and set(image.modalities) == set(sensors) and image.decision == "normal"
        ]
        picked = sum(not image.as_they_came for image in normal)
        where = f" ({', '.join(sensors)})" if len(_sensor_sets(name, version)) > 1 else ""
        if after is None:
            needed = images_needed(version.after.false_alarm_rate)
            yield (
                f"not calibrated{where}: nothing is decided by these scores; {needed} normal images of folders of "
                f"which every image was called, as they came, give a threshold (--complete); "
                f"there are {len(normal) - picked}"
            )
            continue
        also = f" and {picked} picked" if picked else ""
        yield f"{_threshold(before, after)} by {after.images} normal images as they came{also}{where}"
    if note := change.bank_notes.get(name):
        yield f"calibration alone: {note}"
    yield from _missed([one for one in change.anomalies if one.image.class_name == name])


def _of(name: str, version: FeedbackVersion) -> list[CalledImage]:
    return [image for image in version.images if image.class_name == name]


def _missed(anomalies: Sequence[CheckedAnomaly]) -> Iterator[str]:
    if gone := [one for one in anomalies if not one.scored]:
        names = some(one.image.name for one in gone)
        yield f"{len(gone)} called anomalies can't be scored, their files are gone or others: {names}"
    decided = [one for one in anomalies if one.missed_now is not None]
    if not decided:
        return
    now = [one for one in decided if one.missed_now]
    before = sum(bool(one.missed_before) for one in decided)
    names = f": {some(one.image.name for one in now)}" if now else ""
    yield f"the threshold misses {len(now)} of {len(decided)} called anomalies, {before} before{names}"


def _threshold(before: Threshold | None, after: Threshold) -> str:
    value = f"{after.value:.4g}"
    if before is None:
        moved = f"new threshold {value}"
    elif before.value == after.value:
        moved = f"threshold {value} as before"
    else:
        moved = f"threshold {before.value:.4g} -> {value}"
    return f"{moved}, false alarms at most {after.fpr_bound:.3%}"


def _sensor_sets(name: str, version: FeedbackVersion) -> list[tuple[str, ...]]:
    """Of the class's images that were called, and of its thresholds that changed."""
    found = [image.modalities for image in _of(name, version)]
    after = version.after.classes.get(name)
    for part in () if after is None else (after, *after.sets):
        if _found(version.before, name, part.modalities) != part:
            found.append(part.modalities)
    return list({tuple(sorted(sensors)): sensors for sensors in found}.values())


def _found(thresholds: Thresholds, name: str, sensors: Sequence[str]) -> Threshold | None:
    """A class's own; threshold parts are compared by what decides."""
    return thresholds.of_class(name, sensors) if name in thresholds.classes else None


def _notes(version: FeedbackVersion) -> Iterator[str]:
    if any(image.decision == "normal" and not image.as_they_came for image in version.images):
        yield (
            "images picked out of others can raise thresholds and never lower them, so that the rate stays promised; "
            "where every image of the folder was called, as they came, --complete counts them in full"
        )
    called = {image.class_name for image in version.images}
    few = [name for name in version.after.too_few() if name in called]
    if few:
        rate = version.after.false_alarm_rate
        needed = images_needed(rate)
        yield f"a rate of {rate:g} needs {needed} normal images of a class as they came; fewer have {some(few)}"
