"""How the service describes itself: the form that it takes, for OpenAPI, and the same as a page without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimmad.data.image_type import READ_IN_WORDS
from unimmad.inference.detector import Detector
from unimmad.report.html_page import render_page
from unimmad.serving.forms import MAPS, UNNAMED


def request_body(detector: Detector) -> dict[str, Any]:
    """What OpenAPI says of a request: each modality that the model knows is a file."""
    catalogue = detector.catalogue
    kinds = {modality.name: modality.kind for entry in catalogue.datasets.values() for modality in entry.modalities}
    properties: dict[str, Any] = {
        name: {"type": "string", "format": "binary", "description": f"{READ_IN_WORDS}: {kind}"}
        for name, kind in kinds.items()
    }
    if UNNAMED not in kinds and any(len(entry.modalities) == 1 for entry in catalogue.datasets.values()):
        described = f"{READ_IN_WORDS}: the image of a dataset that has one modality"
        properties[UNNAMED] = {"type": "string", "format": "binary", "description": described}
    properties |= {
        "class": {
            "type": "string",
            "enum": list(catalogue.classes),
            "description": "Its threshold decides; CLASS alone is enough where one dataset has it. Left out: not known",
        },
        "dataset": {
            "type": "string",
            "enum": list(catalogue.datasets),
            "description": "Where the class is not known, or is in several datasets",
        },
        "name": {"type": "string", "description": "What the answer calls the sample"},
        "map": {
            "type": "string",
            "enum": list(MAPS),
            "description": "Also the anomaly map: as NPY, or as PNG beside the images. May be given twice",
        },
    }
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def api_page(schema: dict[str, Any]) -> str:
    """An OpenAPI description as one page, with a form to try it; it needs neither scripts nor another server."""
    return render_page("serving.html.j2", Path("page.html"), schema=schema)
