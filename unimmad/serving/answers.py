"""What goes back to a client: a prediction as JSON, its map with it where that was asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unimmad.inference.output import picture_limits, picture_parts, picture_title, said_of
from unimmad.inference.pictures import heat_map
from unimmad.inference.prediction import Prediction

MOST_MAP_PIXELS = 2**24
"""Of a map that is sent as NPY: 64 MiB, a third more as base64."""


class Answer(BaseModel):
    """What is said of one sample."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    name: str = Field(description="The sample's, as it was sent, or of its first file")
    class_name: str | None = Field(alias="class", description="DATASET/CLASS; null where it was not named")
    modalities: list[str] = Field(description="Those that were scored")
    score: float = Field(description="The higher, the less normal")
    shares: dict[str, float] | None = Field(description="Of the score, by modality; null where it can't be said")
    misaligned: list[str] = Field(description="Modalities that seem to lie elsewhere than the first")
    threshold: float | None = Field(description="Above it a sample is called anomalous; null where none holds")
    threshold_of: str | None = Field(description="Class that it was calibrated on, or 'all classes'")
    threshold_promised: bool | None = Field(description="Whether it promises its rate; null without a threshold")
    anomalous: bool | None = Field(description="The decision; null without a threshold")
    roi: str | None = Field(description="Digest of the region of interest, where there is one")
    notes: list[str] = Field(description="What one should know beside it")
    map_npy: str | None = Field(None, description="With map=npy: the anomaly map, float32 [H, W], as NPY in base64")
    map_png: str | None = Field(None, description="With map=png: images, map and colour bar as PNG in base64")


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="One line: what is wrong, and what to do")


def answer(prediction: Prediction, maps: Collection[str]) -> dict[str, Any]:
    """The fields of ``Answer``, of JSON's types; ``maps``: forms of the map, of ``forms.MAPS``.

    Raises:
        ValueError: the map is too large to be sent.
    """
    said = said_of(prediction)
    if "npy" in maps:
        said["map_npy"] = _base64(_npy(prediction))
    if "png" in maps:
        said["map_png"] = _base64(_png(prediction))
    return said


def _npy(prediction: Prediction) -> bytes:
    height, width = prediction.map_HW.shape
    if height * width > MOST_MAP_PIXELS:
        raise ValueError(
            f"a map of {width} x {height} pixels is larger than an answer may carry ({MOST_MAP_PIXELS} pixels): leave "
            "map=npy out, or take unimmad predict --maps"
        )
    stream = io.BytesIO()
    np.save(stream, prediction.map_HW, allow_pickle=False)
    return stream.getvalue()


def _png(prediction: Prediction) -> bytes:
    picture = heat_map(
        prediction.pictures,
        prediction.map_HW,
        picture_limits(prediction),
        prediction.weights_HW,
        picture_title(prediction),
        picture_parts(prediction),
    )
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
