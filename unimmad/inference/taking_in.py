"""Images called normal are taken into the banks of their classes, in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from unimmad.checkpoint.feedback import CalledImage
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine, normalised
from unimmad.inference.inputs import InputSample
from unimmad.methods.growing import BankPlace, append_rows, lacking_rows, why_fixed, why_full
from unimmad.model.backends.tf32 import without_tf32


def taken_in(
    detector: Detector, called: Sequence[CalledImage], held: Collection[str]
) -> tuple[list[CalledImage], dict[BankPlace, Tensor], dict[str, str]]:
    """Let the banks of a detector's model grow by the images that are called normal, one after the other.

    Args:
        detector: of a checkpoint.
        called: with class and files.
        held: digests of images that banks have already.

    Returns:
        The images, marked where a bank holds them; each bank's new rows, on the CPU; by class, why its banks didn't
        grow by all of them.

    Raises:
        ValueError: an image can't be read.
    """
    engine = detector.engine
    assert isinstance(engine, ModelEngine), "a checkpoint, no exported file"
    rows: dict[BankPlace, list[Tensor]] = {}
    notes: dict[str, str] = {}
    images = []
    for image in called:
        in_bank = image.in_bank or image.digest in held
        if image.decision == "normal" and not in_bank:
            if note := why_fixed(engine.model, image.class_name):
                notes[image.class_name] = note
            elif note := why_full(engine.model, found := _rows_of(detector, engine, image)):
                notes[image.class_name] = f"of images that its bank has no room for: {note}"
            else:
                for place, rows_nD in found:
                    append_rows(engine.model, place, rows_nD)
                    rows.setdefault(place, []).append(rows_nD.cpu())
                in_bank = True
        images.append(image.model_copy(update={"in_bank": in_bank}))
    return images, {place: torch.cat(parts) for place, parts in rows.items()}, notes


def _rows_of(detector: Detector, engine: ModelEngine, image: CalledImage) -> list[tuple[BankPlace, Tensor]]:
    """What the image adds to each bank."""
    sample = detector.prepare(InputSample(image.name, dict(image.files)), class_name=image.class_name)
    slots = [modality.slot for modality in sample.modalities]
    with without_tf32(), torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.precision == "bf16"):
        views = (normalised(sample.cut(view)).to(engine.device) for view in sample.views)
        return lacking_rows(engine.model, image.class_name, views, slots)
