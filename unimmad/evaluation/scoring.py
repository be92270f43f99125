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
from unimmad.model.anomaly_map import gaussian_blur, image_scores
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


def score_batch(
    model: Method,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """Blurred anomaly maps [B, H, W] and image scores [B], float32 on the CPU."""
    scored = score_on_device(model, batch, settings, device, precision)
    return scored.maps_BHW.cpu(), scored.scores_B.cpu()


def score_on_device(
    model: Method, batch: Batch, settings: EvaluationSettings, device: torch.device, precision: Precision
) -> BatchScores:
    """As :func:`score_batch`, but what it gives stays on ``device``, where it may still be computed."""
    on_device = batch.to(device)
    scored = score_images(
        model,
        on_device.images_TCHW,
        batch.tokens_per_sample,
        on_device.slot_of_token_T,
        settings,
        precision,
        [sample.class_name for sample in batch.samples],
    )
    views = [sample.view for sample in batch.samples]
    return scored._replace(scores_B=scores_of_views(scored.maps_BHW, scored.scores_B, views, settings))


def scores_of_views(
    maps_BHW: Tensor, scores_B: Tensor, views: Sequence[View | None], settings: EvaluationSettings
) -> Tensor:
    """Image scores without what is padding: of maps that have some, by what their views see alone.

    Args:
        maps_BHW: blurred maps.
        scores_B: their scores, padding and all.
        views: of each map; None: one without padding.
        settings: the rule of the scores.
    """
    scores = list(scores_B)
    for number, view in enumerate(views):
        if view is not None and not view.fills:
            seen_1hw = maps_BHW[number : number + 1, *view.target.pixels]
            pool = min(settings.score_pool, *seen_1hw.shape[1:])
            scores[number] = image_scores(seen_1hw, settings.top_share, pool)[0]
    return torch.stack(scores)


@torch.inference_mode()
def score_images(
    model: Method,
    images_TCHW: Tensor,
    tokens_per_sample: Sequence[int],
    slot_of_token_T: Tensor,
    settings: EvaluationSettings,
    precision: Precision,
    classes: Sequence[str | None] | None = None,
) -> BatchScores:
    """Score normalised images, listed sample by sample, that are on the model's device; the scores stay there.

    ``classes``: of each sample, None where it is not known, for methods that look at them.
    """
    known = {"classes": classes} if isinstance(model, Fitted) else {}
    with without_tf32():
        with torch.autocast(images_TCHW.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(images_TCHW, tokens_per_sample, slot_of_token_T, **known)
        maps_BHW = gaussian_blur(model.maps(output), *settings.blur(model.image_size))
    return BatchScores(
        maps_BHW, image_scores(maps_BHW, settings.top_share, settings.score_pool), model.routings(output)
    )
