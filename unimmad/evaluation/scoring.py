"""From images to anomaly maps and image scores: the one place that says in which numbers that is computed.

Evaluation, also during training, calibration, prediction and its benchmark all score by ``score_images``, and so under
``torch.inference_mode``, without TF32, and in a precision whose default is the same for all of them.

Letters: B samples, T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimmad.config import EvaluationSettings, Precision
from unimmad.data.sample import Batch
from unimmad.data.views import View
from unimmad.methods.added_class import WithAddedClasses
from unimmad.model.anomaly_map import gaussian_blur, image_scores, part_scores, region_score, weigh
from unimmad.model.backends.execution import compile_networks, use_channels_last
from unimmad.model.backends.tf32 import without_tf32
from unimmad.model.method import Fitted, Method
from unimmad.model.routing import Routing


class BatchScores(NamedTuple):
    """What the model says of a batch, on its device."""

    maps_BHW: Tensor
    """Blurred anomaly maps, float32."""
    scores_B: Tensor
    """Image scores, float32."""
    routings: Sequence[Sequence[Routing]]
    """By level, then branch; empty where the method routes nothing."""
    parts_THW: Tensor | None = None
    """What each token adds to its sample's map, where that was asked for and the method can say it."""


def check_scored(where: str, map_HW: NDArray[np.float32], score: float) -> None:
    """Hold what the model says of one sample, on the host, against what it can say.

    A NaN is above no threshold, and so would be a normal image.

    Raises:
        ValueError: the score or a value of the map is NaN or infinite; ``where`` is what the error calls the sample.
    """
    bad = map_HW.size - int(np.isfinite(map_HW).sum())
    if bad or not np.isfinite(score):
        what = f"{bad} of {map_HW.size} values of its anomaly map are" if bad else "its score is"
        raise ValueError(f"{where}: {what} NaN or infinite; check the model's weights and the input image")


def named_device(name: str | None) -> torch.device:
    """The device called ``name``; None: the GPU where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device {name} can't be used here: {str(error).splitlines()[0]}") from None


def check_device(name: str | None) -> None:
    """``named_device`` without touching a GPU, which would take some of its memory until this process ends.

    Raises:
        ValueError: there is no such device here.
    """
    of_cuda = re.fullmatch(r"cuda(?::(\d+))?", name or "", re.ASCII)
    if name is not None and not (of_cuda and int(of_cuda[1] or 0) < torch.cuda.device_count()):
        named_device(name)


def default_precision(device: torch.device) -> Precision:
    """``bf16`` on a GPU that computes in it, ``fp32`` everywhere else."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"


def chosen_precision(precision: Precision | None, device: torch.device) -> Precision:
    """``precision``; None: ``default_precision``.

    Raises:
        ValueError: there is no such precision.
    """
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is not one of {', '.join(get_args(Precision))}")
    return precision or default_precision(device)


def numerics(precision: Precision, device: torch.device) -> str:
    """What ``score_images`` computes in, in words."""
    tf32 = "no TF32 in what autocast leaves in fp32" if precision == "bf16" else "no TF32"
    return f"{precision} on {device.type}, {tf32}; the model's inference form, in inference mode"


def scoring_form(model: Method, settings: EvaluationSettings, device: torch.device) -> Method:
    """``model`` in its inference form, on ``device``, computed as ``settings`` say; in place.

    Raises:
        ValueError: ``settings.compile``, and this machine lacks what it needs.
    """
    model = model.to(device).inference_form(settings.leader_cache_mib * 2**20)
    if settings.channels_last:
        use_channels_last(model)
    if settings.compile:
        compile_networks(model, device)
    return model


def score_on_device(
    model: Method, batch: Batch, settings: EvaluationSettings, device: torch.device, precision: Precision
) -> BatchScores:
    """Blurred anomaly maps [B, H, W] and image scores [B], float32; they stay on ``device``, where they may still be
    computed."""
    scored = score_unweighed(model, batch, settings, device, precision)
    weights, views = [sample.weights_HW for sample in batch.samples], [sample.view for sample in batch.samples]
    maps_BHW, scores_B = maps_and_scores(scored.maps_BHW, settings, weights, views, scored.scores_B)
    return scored._replace(maps_BHW=maps_BHW, scores_B=scores_B)


def score_unweighed(
    model: Method,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision,
    with_parts: bool = False,
) -> BatchScores:
    """As :func:`score_on_device`, before regions of interest and padding are regarded."""
    on_device = batch.to(device)
    return score_images(
        model,
        on_device.images_TCHW,
        batch.tokens_per_sample,
        on_device.slot_of_token_T,
        settings,
        precision,
        [sample.class_name for sample in batch.samples],
        with_parts,
    )


@torch.inference_mode()
def score_images(
    model: Method,
    images_TCHW: Tensor,
    tokens_per_sample: Sequence[int],
    slot_of_token_T: Tensor,
    settings: EvaluationSettings,
    precision: Precision,
    classes: Sequence[str | None] | None = None,
    with_parts: bool = False,
) -> BatchScores:
    """Score normalised images, listed sample by sample, that are on the model's device; the scores stay there.

    ``classes``: of each sample, None where it is not known, for methods that look at them. What is padding, and what is
    not looked at, is for ``maps_and_scores``. ``with_parts``: with ``BatchScores.parts_THW``.
    """
    known = {"classes": classes} if isinstance(model, Fitted | WithAddedClasses) else {}
    with without_tf32():
        with torch.autocast(images_TCHW.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(images_TCHW, tokens_per_sample, slot_of_token_T, **known)
        maps_BHW = gaussian_blur(model.maps(output), *settings.blur(model.image_size))
        scores_B = image_scores(maps_BHW, settings.top_share, settings.score_pool)
        parts_THW = model.parts(output) if with_parts else None
        if parts_THW is not None:  # a blur of a sum is the sum of the blurs
            parts_THW = gaussian_blur(parts_THW, *settings.blur(model.image_size))
    return BatchScores(maps_BHW, scores_B, model.routings(output), parts_THW)


@torch.inference_mode()
def maps_and_scores(
    maps_BHW: Tensor,
    settings: EvaluationSettings,
    weights: Sequence[Tensor | None],
    views: Sequence[View | None] = (),
    scores_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Blurred maps as they are judged, and their image scores [B]: the one place where regions of interest come in.

    Args:
        maps_BHW: blurred, of the whole pictures.
        settings: how a map becomes a score.
        weights: of each sample, float32 H x W, 0 (not looked at, padding) to 1, from wherever; None where all is looked
            at. Empty: all of all.
        views: of each sample, what its picture shows; where that has padding, the score is of the rest alone. Empty:
            without padding.
        scores_B: the scores of the whole pictures, where they are known.

    Returns:
        The maps, those with weights weighed, and the scores; -inf where nothing of a picture is looked at.
    """
    if scores_B is None:
        scores_B = image_scores(maps_BHW, settings.top_share, settings.score_pool)
    maps_BHW, scores_B = maps_BHW.clone() if any(one is not None for one in weights) else maps_BHW, scores_B.clone()
    nothing = [None] * len(maps_BHW)
    for number, (view, weights_HW) in enumerate(zip(views or nothing, weights or nothing, strict=True)):
        if weights_HW is not None:
            maps_BHW[number] = weigh(maps_BHW[number], weights_HW.to(maps_BHW.device))
        if weights_HW is not None or not (view is None or view.fills):
            seen = np.s_[:, :] if view is None else view.target.pixels
            scores_B[number] = _score(
                maps_BHW[number][seen], None if weights_HW is None else weights_HW[seen], settings
            )
    return maps_BHW, scores_B


@torch.inference_mode()
def shares_of_score(
    map_HW: Tensor, parts_MHW: Tensor, settings: EvaluationSettings, weights_HW: Tensor | None, view: View | None
) -> tuple[float, ...]:
    """Each modality's share of one view's score, adding up to 1: of the pixels that make the score, what each adds.

    Args:
        map_HW: blurred, of the whole picture, before weights.
        parts_MHW: what each modality adds to it.
        settings: how a map becomes a score.
        weights_HW: as for ``maps_and_scores``.
        view: what the picture shows.
    """
    seen = np.s_[:, :] if view is None or view.fills else view.target.pixels
    map_hw, parts_Mhw = map_HW[seen], parts_MHW[(slice(None), *seen)]
    look_hw = None
    if weights_HW is not None:
        weights_hw = weights_HW[seen].to(map_hw.device)
        map_hw, parts_Mhw, look_hw = weigh(map_hw, weights_hw), parts_Mhw * weights_hw, weights_hw > 0
    pool = min(settings.score_pool, *map_hw.shape)
    found_M = torch.zeros(len(parts_Mhw))
    if look_hw is None or look_hw.any():
        found_M = part_scores(map_hw, parts_Mhw, look_hw, settings.top_share, pool).double().cpu()
    total = float(found_M.sum())
    if not total > 0:
        return (1 / len(found_M),) * len(found_M)
    return tuple((found_M / total).tolist())


def _score(map_hw: Tensor, weights_hw: Tensor | None, settings: EvaluationSettings) -> Tensor | float:
    """Of what a view sees, without its padding."""
    pool = min(settings.score_pool, *map_hw.shape)
    if weights_hw is None:
        return image_scores(map_hw[None], settings.top_share, pool)[0]
    look_hw = weights_hw > 0
    return region_score(map_hw, look_hw.to(map_hw.device), settings.top_share, pool) if look_hw.any() else -torch.inf
