"""What an audit leaves: JSON, and one page with pictures.

FOLDER/audit.json           everything that was found
FOLDER/audit.html           the page
FOLDER/audit_pictures/*.png what it shows
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unimmad import __version__
from unimmad.audit.findings import Finding, joined, worst, worst_first
from unimmad.audit.geometry import misaligned_samples
from unimmad.audit.pictures import (
    duplicates_figure,
    lookup,
    misaligned_figure,
    remove_pictures,
    small_defects_figure,
    suspects_figure,
    values_figure,
)
from unimmad.audit.run import Audited
from unimmad.audit.samples import AuditSample
from unimmad.audit.screen import summary_line
from unimmad.audit.suspects import Suspect
from unimmad.audit.tables import class_table, mask_table, value_table
from unimmad.report.figures import save_figure
from unimmad.report.file_names import file_name
from unimmad.report.html_page import Picture, Section, render_page
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside

FORMAT = 1
JSON_NAME, PAGE_NAME, PICTURES = "audit.json", "audit.html", "audit_pictures"
MOST_LISTED = 50
"""Suspicious images of a class in JSON, and pairs of duplicates."""


def as_json(audited: Audited, sources: Sequence[str]) -> dict[str, Any]:
    """Everything that was found, of JSON's types."""
    return {
        "format": FORMAT,
        "version": __version__,
        "sources": list(sources),
        "image_size": audited.image_size,
        "features": audited.features,
        "samples": len(audited.samples),
        "worst": worst(audited.findings).word,
        "findings": [_finding(found) for found in audited.findings],
        "classes": _rows(class_table(audited.samples)),
        "values": _rows(value_table(audited.samples)),
        "masks": _rows(mask_table(audited.samples, audited.image_size)),
        "duplicates": [
            {
                "files": list(pair.files),
                "splits": [pair.first.split, pair.second.split],
                "defects": [pair.first.defect, pair.second.defect],
                "modality": pair.modality,
                "correlation": round(pair.correlation, 4),
            }
            for pair in audited.duplicates[:MOST_LISTED]
        ],
        "suspicious_normals": {
            name: [_suspect(suspect) for suspect in suspects[:MOST_LISTED]]
            for name, suspects in audited.suspects.items()
        },
    }


def save(audited: Audited, samples: Sequence[AuditSample], sources: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Write JSON, pictures and page; gives JSON and page.

    Raises:
        ValueError: the folder can't be written to.
    """
    file, page = folder / JSON_NAME, folder / PAGE_NAME
    write_text_aside(file, json.dumps(as_json(audited, sources), indent=1, ensure_ascii=False) + "\n")
    remove_pictures(folder / PICTURES)
    text = render_page(
        "audit.html.j2",
        page,
        header=_header(audited, sources),
        summary=summary_line(audited),
        findings=worst_first(joined(audited.findings)),
        sections=list(_sections(audited, samples, folder / PICTURES)),
        files=[file],
    )
    write_text_aside(page, text)
    return file, page


def _header(audited: Audited, sources: Sequence[str]) -> Mapping[str, str]:
    return {
        "source": ", ".join(sources),
        "model's image size": f"{audited.image_size} x {audited.image_size}",
        "features": audited.features,
    }


def _sections(audited: Audited, samples: Sequence[AuditSample], folder: Path) -> Iterator[Section]:
    found = lookup(samples)
    yield Section("Samples", "", tables=(class_table(audited.samples),))
    values = value_table(audited.samples)
    pictures = [_picture(folder, "values", values_figure(audited.samples), _VALUES)] if values.rows else []
    yield Section("Values", "", tuple(pictures), (values,))
    masks = mask_table(audited.samples, audited.image_size)
    if masks.rows:
        small = small_defects_figure(audited.samples, found)
        pictures = [] if small is None else [_picture(folder, "small-defects", small, _SMALL)]
        yield Section("Masks", "", tuple(pictures), (masks,))
    if audited.duplicates:
        figure = duplicates_figure(audited.duplicates, found)
        yield Section("Duplicates", _DUPLICATES, (_picture(folder, "duplicates", figure, "The worst first."),))
    if misaligned := misaligned_samples(audited.samples):
        figure = misaligned_figure(misaligned, found)
        yield Section("Alignment", _ALIGNMENT, (_picture(folder, "alignment", figure, _COLOURS),))
    if audited.suspects:
        drawn = [
            _picture(folder, f"suspects-{file_name(*name.split('/'))}", suspects_figure(suspects, found), name)
            for name, suspects in audited.suspects.items()
        ]
        yield Section("Suspicious normals", _SUSPECTS, tuple(drawn))


_VALUES = "Share of pixels by value; differences between training and normal test images are worth a look."
_SMALL = "The smallest regions of all masks, cut out at full resolution."
_DUPLICATES = (
    "Pairs of images with the same pixels, or that depart in the same way from what their class has in common."
)
_ALIGNMENT = "Samples whose modalities do not lie over each other as in the rest of the class, by their edges."
_COLOURS = "First modality red, second green and blue; above it the correlation of their edges in place."
_SUSPECTS = (
    "The training images of each class that are most unlike the others; on the right two ordinary ones. Below each, "
    "what is unlike: how far its patches are from the nearest one of any other training image, by a frozen network. A "
    "defect among them would be learnt as normal; a rare but good part is a reason for more images of its kind."
)


def _picture(folder: Path, name: str, figure: Figure, caption: str) -> Picture:
    path = folder / f"{name}.png"
    save_figure(figure, path)
    return Picture(path, caption)


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "severity": found.severity.word,
        "check": found.check,
        "where": found.where,
        "what": found.what,
        "do": found.advice,
        "count": found.count,
        "files": list(found.files),
    }


def _suspect(suspect: Suspect) -> dict[str, Any]:
    return {
        "file": suspect.sample.images[suspect.modality].file,
        "key": suspect.sample.key,
        "modality": suspect.modality,
        "deviations": round(suspect.deviations, 2),
    }


def _rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.heads, row, strict=True)) for row in table.rows]
