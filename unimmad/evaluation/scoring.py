"""From a batch to anomaly maps and image scores, in the precision asked for.

Letters: B samples, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unimmad.config import EvaluationSettings
from unimmad.data.sample import Batch
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.execution import compile_networks, use_channels_last
from unimmad.model.inference import for_inference
from unimmad.model.routing import Routing
from unimmad.model.unimmad import UniMMAD

Precision = Literal["fp32", "bf16"]
"""``fp32``: without TF32, so that numbers are the same on every device, to rounding; ``bf16``: autocast of the network
over fp32 weights, while routing scores, distances, maps and image scores stay fp32."""
MaskRule = Literal["nearest", "bilinear"]
"""How masks come to the image size before they count where > 0."""


class BatchScores(NamedTuple):
    """What the model says of a batch, on its device."""

    maps_BHW: Tensor
    """Blurred anomaly maps, float32."""
    scores_B: Tensor
    """Image scores, float32."""
    routings: Sequence[Sequence[Routing]]
    """By level, then branch."""


def named_device(name: str | None) -> torch.device:
    """The device called ``name``; None: the GPU where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from None


def default_precision(device: torch.device) -> Precision:
    """``bf16`` on a GPU that computes in it, ``fp32`` everywhere else."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp32"


def scoring_form(model: UniMMAD, settings: EvaluationSettings, device: torch.device) -> UniMMAD:
    """``model`` in its inference form, on ``device``, computed as ``settings`` say; in place.

    Raises:
        ValueError: ``settings.compile``, and this machine lacks what it needs.
    """
    model = for_inference(model.to(device), settings.leader_cache_mib * 2**20)
    if settings.channels_last:
        use_channels_last(model)
    if settings.compile:
        compile_networks(model, device)
    return model


def score_batch(
    model: UniMMAD,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """Blurred anomaly maps [B, H, W] and image scores [B], float32 on the CPU."""
    scored = score_on_device(model, batch, settings, device, precision)
    return scored.maps_BHW.cpu(), scored.scores_B.cpu()


@torch.no_grad()
def score_on_device(
    model: UniMMAD, batch: Batch, settings: EvaluationSettings, device: torch.device, precision: Precision
) -> BatchScores:
    """As :func:`score_batch`, but what it gives stays on ``device``, where it may still be computed."""
    on_device = batch.to(device)
    with _exact_fp32(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = model(on_device.images_TCHW, batch.tokens_per_sample, on_device.slot_of_token_T)
    with _exact_fp32():
        maps_BHW = gaussian_blur(model.maps(output), settings.blur_kernel, settings.blur_sigma)
    return BatchScores(maps_BHW, image_scores(maps_BHW, settings.top_share), output.routings)


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Convolutions and matrix products of fp32 numbers without TF32, which PyTorch allows convolutions by default."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
