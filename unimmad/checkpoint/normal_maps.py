"""What the anomaly maps of normal images are like, so that a picture's colours mean something without thresholds.

They lie as ``normal_maps.json`` in the checkpoint's folder, since they hold for its weights only; a grown checkpoint
takes over those of old classes that it can't measure, whose maps hardly move. Training writes the file at its end;
older and unfinished checkpoints have none.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from unimmad.checkpoint.thresholds import Sensors
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Entry, validated

NORMAL_MAPS_NAME = "normal_maps.json"
FORMAT: Literal[1] = 1


class NormalSet(Entry):
    """The maps of one class's normal images of the same modalities."""

    class_name: str
    """``DATASET/CLASS``."""
    modalities: list[str]
    images: Annotated[int, Field(gt=0)]
    """Images that were scored."""
    usual: float
    """Median over the images of their maps' medians."""
    highest: float
    """Largest of their image scores."""
    typical: float | None = None
    """Median of their image scores; None where an older version wrote the file."""


class NormalMaps(Entry):
    """All that ``normal_maps.json`` holds."""

    format: Literal[1] = FORMAT
    split: str
    """The split that the images are of; of classes that a grown checkpoint took over, that of the old one's file."""
    sets: list[NormalSet]

    def of(self, class_name: str | None, modalities: Sequence[str]) -> tuple[float, float] | None:
        """``usual`` and ``highest`` of a class's images of exactly these modalities; of a class that is not known the
        median and the largest of all classes; None where there are no such images."""
        alike = [one for one in self.sets if set(one.modalities) == set(modalities)]
        found = [one for one in alike if one.class_name == class_name] or alike
        if not found:
            return None
        return statistics.median(one.usual for one in found), max(one.highest for one in found)


def normal_maps(split: str, found: Mapping[tuple[str, Sensors], Sequence[tuple[float, float]]]) -> NormalMaps:
    """From the median of its map and the score of each image, by class and modalities."""
    return NormalMaps(
        split=split,
        sets=[
            NormalSet(
                class_name=class_name,
                modalities=list(sensors),
                images=len(images),
                usual=statistics.median(usual for usual, _ in images),
                highest=max(score for _, score in images),
                typical=statistics.median(score for _, score in images),
            )
            for (class_name, sensors), images in found.items()
        ],
    )


def joined_normal_maps(found: NormalMaps | None, kept: NormalMaps | None) -> NormalMaps | None:
    """``found``, and the sets of ``kept`` that it lacks."""
    if found is None or kept is None:
        return found or kept
    known = {(one.class_name, frozenset(one.modalities)) for one in found.sets}
    others = [one for one in kept.sets if (one.class_name, frozenset(one.modalities)) not in known]
    return found.model_copy(update={"sets": [*found.sets, *others]})


def save_normal_maps(found: NormalMaps, checkpoint: Path) -> Path:
    """Write ``normal_maps.json`` into a checkpoint's folder; returns the file.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = checkpoint / NORMAL_MAPS_NAME
    write_text_aside(path, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
    return path


def load_normal_maps(checkpoint: Path) -> NormalMaps | None:
    """What training wrote there; None where it wrote nothing.

    Raises:
        ValueError: the file is damaged or of another form.
    """
    path = checkpoint / NORMAL_MAPS_NAME
    if not path.is_file():
        return None
    remedy = "remove it: it is for the colours of pictures alone"
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}; {remedy}") from None
    return validated(_SCHEMA, values, str(path), remedy)


_SCHEMA: TypeAdapter[NormalMaps] = TypeAdapter(NormalMaps)
