"""StableAdamW as Dinomaly and INP-Former train with it: AdamW with amsgrad, whose updates are clipped.

A tensor's learning rate is divided by the root mean square of gradient / sqrt(second moment), where that is above 1.
Where ZeRO shards the optimizer, a tensor is a rank's part of all parameters laid end to end, and so is what that mean
is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports

ensure_torchvision_imports()
from timm.optim import AdamWLegacy  # noqa: E402


def stable_adamw(
    parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-10,
    weight_decay: float = 1e-4,
) -> torch.optim.Optimizer:
    """The optimizer; its state is ``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq`` and ``step``."""
    return AdamWLegacy(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=True, clipping_threshold=1.0
    )
