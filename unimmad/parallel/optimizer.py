"""The optimizer that a recipe names.

They are torch's own and timm's: DeepSpeed's would be compiled first, and the mathematics is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

from unimmad.config import TrainingSettings
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.leaders import BaseKernelBank
from unimmad.model.method import Method

ensure_torchvision_imports()
from timm.optim import AdamWLegacy  # noqa: E402


def new_optimizer(model: Method, training: TrainingSettings) -> torch.optim.Optimizer:
    """Over all that is trained, experts in groups of their own."""
    groups = split_params_into_different_moe_groups_for_optimizer(_parameter_groups(model, training))
    rate = training.learning_rate
    adam: dict[str, Any] = {"betas": training.betas, "eps": training.adam_epsilon}
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=rate)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, fused=True, **adam)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=training.weight_decay, fused=True, **adam)
        case "stable_adamw":
            return AdamWLegacy(
                groups, lr=rate, weight_decay=training.weight_decay, amsgrad=True, clipping_threshold=1.0, **adam
            )


def _parameter_groups(model: Method, training: TrainingSettings) -> list[dict[str, Any]]:
    """All that is trained; in two groups where weight decay leaves vectors out, or banks of which some stay as they
    are, since it moves what has no gradient, too."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not training.weight_decay:
        return [{"params": trainable, "name": "dense"}]
    partly = {
        id(module.kernels_GNEEkk)
        for module in model.modules()
        if isinstance(module, BaseKernelBank) and module.trained_G is not None
    }
    without = [p for p in trainable if id(p) in partly or (p.ndim <= 1 and not training.decay_vectors)]
    if not without:
        return [{"params": trainable, "name": "dense"}]
    spared = {id(parameter) for parameter in without}
    return [
        {"params": [parameter for parameter in trainable if id(parameter) not in spared], "name": "dense"},
        {"params": without, "name": "dense vectors", "weight_decay": 0.0},
    ]
