"""What a monitor says: lines for a screen, JSON, and one page with curves.

FOLDER/monitor.json            everything
FOLDER/monitor.html            the page
FOLDER/monitor_pictures/*.png  its curves
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unimmad import __version__
from unimmad.monitoring.figures import stream_figure
from unimmad.monitoring.monitor import FEWEST_IMAGES, DriftMonitor, Verdict
from unimmad.monitoring.streams import Alarm, Place, Stream
from unimmad.report.figures import save_figure
from unimmad.report.file_names import file_name
from unimmad.report.html_page import Picture, render_page
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.text import listed, one_line

FORMAT = 1
JSON_NAME, PAGE_NAME, PICTURES = "monitor.json", "monitor.html", "monitor_pictures"
MOST_PICTURES = 24
"""Classes' modalities whose curves are drawn, those that changed first."""


def screen_lines(monitor: DriftMonitor) -> list[str]:
    """The verdicts with their alarms, and what was not watched."""
    lines = []
    for verdict in monitor.verdicts():
        lines.append(f"DRIFT {_who(verdict)}: {'; '.join(verdict.causes)}")
        lines += [f"  {alarm_line(alarm, monitor)}" for alarm in verdict.alarms]
    return [*lines, *(f"note: {note}" for note in notes(monitor)), summary_line(monitor)]


def summary_line(monitor: DriftMonitor) -> str:
    """Counts, and what the false-alarm rate promises."""
    seen, classes = sum(monitor.seen.values()), len(monitor.seen)
    watched = f"{seen} image{'s' * (seen != 1)} of {classes} class{'es' * (classes != 1)}"
    what = f"{len(monitor.alarms)} of {len(monitor.streams)} statistics changed" if monitor.alarms else "no drift"
    return (
        f"{watched}: {what} (without a change there is ever an alarm with probability {monitor.false_alarms:g} at most)"
    )


def alarm_line(alarm: Alarm, monitor: DriftMonitor) -> str:
    """One statistic's change, in words."""
    latest = monitor.streams[alarm.stream].latest
    low, high = alarm.usual
    lately = "" if latest is None else f": {latest:.4g} lately, usually {low:.4g} to {high:.4g}"
    statistic = alarm.stream.statistic.replace("_", " ")
    return f"{statistic} {alarm.direction} since {_where(alarm.since)}, noticed at image {alarm.noticed.number}{lately}"


def notes(monitor: DriftMonitor) -> list[str]:
    """What was not watched, or hardly."""
    found = [
        f"{count} image{'s' * (count != 1)} not watched: {one_line(what)} was not calibrated"
        for what, count in monitor.unknown.most_common(5)
    ]
    if len(monitor.unknown) > 5:
        left = sum(count for _, count in monitor.unknown.most_common()[5:])
        found.append(f"{left} more images not watched, of {len(monitor.unknown) - 5} other names")
    if few := monitor.few():
        found.append(
            f"fewer than {FEWEST_IMAGES} calibration images: a change before {FEWEST_IMAGES} with later ones may go "
            f"unnoticed: {listed(few, 5)}"
        )
    return found


def as_json(monitor: DriftMonitor, files: Sequence[str]) -> dict[str, Any]:
    """All that is known, of JSON's types."""
    return {
        "format": FORMAT,
        "version": __version__,
        "files": list(files),
        "reference": monitor.reference.digest,
        "false_alarms": monitor.false_alarms,
        "anomalous_share": monitor.anomalous_share,
        "drift": bool(monitor.alarms),
        "images": dict(monitor.seen),
        "not_watched": dict(monitor.unknown),
        "verdicts": [
            {
                "class": verdict.class_name,
                "modalities": list(verdict.modalities),
                "drift": verdict.drift,
                "causes": list(verdict.causes),
                "since": verdict.since._asdict(),
                "alarms": [_alarm(alarm, monitor) for alarm in verdict.alarms],
            }
            for verdict in monitor.verdicts()
        ],
        "statistics": [_stream(stream) for stream in monitor.streams.values() if stream.evidence.seen],
    }


def save(monitor: DriftMonitor, files: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Write JSON, curves and page; gives JSON and page.

    Raises:
        ValueError: the folder can't be written to.
    """
    file, page = folder / JSON_NAME, folder / PAGE_NAME
    write_text_aside(file, json.dumps(as_json(monitor, files), indent=1, ensure_ascii=False) + "\n")
    text = render_page(
        "monitor.html.j2",
        page,
        header={
            "predictions": ", ".join(map(one_line, files)),
            "false alarms": f"with probability {monitor.false_alarms:g} at most, ever, without a change",
            "share called anomalous": f"{monitor.anomalous_share:g} is expected at most",
        },
        summary=summary_line(monitor),
        verdicts=[
            (_who(verdict), verdict, [alarm_line(alarm, monitor) for alarm in verdict.alarms])
            for verdict in monitor.verdicts()
        ],
        notes=notes(monitor),
        pictures=list(_pictures(monitor, folder / PICTURES)),
        table=_table(monitor),
        files=[file],
    )
    write_text_aside(page, text)
    return file, page


def _pictures(monitor: DriftMonitor, folder: Path) -> Iterator[Picture]:
    """A picture of each class's modality or scores, those that changed before the others."""
    groups: dict[tuple[str, tuple[str, ...]], list[Stream]] = {}
    for stream in monitor.streams.values():
        if stream.evidence.seen:
            groups.setdefault((stream.name.class_name, stream.name.modalities), []).append(stream)
    ordered = sorted(groups.items(), key=lambda item: not any(stream.alarm for stream in item[1]))
    for (class_name, modalities), streams in ordered[:MOST_PICTURES]:
        what = "scores" if any(stream.name.statistic == "score" for stream in streams) else "images"
        path = folder / f"{file_name(*class_name.split('/'), *modalities, what)}.png"
        save_figure(stream_figure(streams), path)
        yield Picture(path, f"{class_name}, {'+'.join(modalities)}: {what}")


def _table(monitor: DriftMonitor) -> Table:
    rows = [
        (
            one_line(stream.name.class_name),
            one_line("+".join(stream.name.modalities)),
            stream.name.statistic.replace("_", " "),
            str(stream.evidence.seen),
            f"{stream.usual[0]:.4g} to {stream.usual[1]:.4g}",
            "" if stream.latest is None else f"{stream.latest:.4g}",
            f"{stream.evidence.capital:.3g}",
            "" if stream.alarm is None else f"{stream.alarm.direction} since {stream.alarm.since.number}",
        )
        for stream in monitor.streams.values()
        if stream.evidence.seen
    ]
    limit = len(monitor.streams) / monitor.false_alarms
    heads = ("class", "modality", "statistic", "images", "usually", "lately", "evidence", "drift")
    return Table(heads, rows, names=3, notes=(f"Drift is told of where the evidence reaches {limit:.4g}.",))


def _who(verdict: Verdict) -> str:
    return one_line(f"{verdict.class_name} {'+'.join(verdict.modalities)}")


def _where(place: Place) -> str:
    said = ", ".join(filter(None, (one_line(place.name), one_line(place.time))))
    return f"image {place.number} ({said})"


def _alarm(alarm: Alarm, monitor: DriftMonitor) -> dict[str, Any]:
    return {
        "statistic": alarm.stream.statistic,
        "direction": alarm.direction,
        "since": alarm.since._asdict(),
        "noticed": alarm.noticed._asdict(),
        "usual": list(alarm.usual),
        "latest": monitor.streams[alarm.stream].latest,
    }


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "class": stream.name.class_name,
        "modalities": list(stream.name.modalities),
        "statistic": stream.name.statistic,
        "images": stream.evidence.seen,
        "calibration_images": stream.images,
        "usual": list(stream.usual),
        "latest": stream.latest,
        "evidence": stream.evidence.capital,
        "limit": stream.limit,
    }
