"""The DeepSpeed engine of a placed model, and its optimizer's state as pieces of portable tensors."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor

from unimmad.config import TrainingSettings
from unimmad.model.backends.activation_checkpointing import recompute_activations
from unimmad.model.backends.execution import compile_networks, use_channels_last
from unimmad.model.method import Method
from unimmad.parallel.batchnorm import synchronise_batchnorm
from unimmad.parallel.deepspeed_config import DeepSpeedSettings, engine_config
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.gradient_norm import GradientNorm, clip_whole_gradient
from unimmad.parallel.moe import LeaderMOELayer
from unimmad.parallel.optimizer import new_optimizer
from unimmad.parallel.placement import PlacedParameter, place_leaders, placed_parameters
from unimmad.parallel.private_deepspeed import zero_fragment
from unimmad.parallel.world import World


@dataclass(frozen=True)
class Engine:
    """A model on its ranks, ready to be trained."""

    deepspeed: Any
    model: Method
    world: World
    ep_size: int
    gradient_norm: GradientNorm

    def set_learning_rate(self, rate: float) -> None:
        for group in self.torch_optimizer.param_groups:
            group["lr"] = rate

    def take_traffic(self) -> CommStats:
        """What this rank's dispatches sent in forward passes since the last call."""
        layers = _expert_layers(self.model)
        total = sum((layer.comm_stats for layer in layers), CommStats())
        for layer in layers:
            layer.comm_stats = CommStats()
        return total

    def parameters(self, with_frozen: bool = False) -> Iterator[PlacedParameter]:
        """This rank's trainable parameters (``with_frozen``: all) as pieces of portable tensors."""
        return placed_parameters(self.model, self.ep_size, self.world.rank, with_frozen)

    def optimizer_pieces(self) -> Iterator[OptimizerPiece]:
        """Where this rank holds optimizer state, parameter by parameter; under ZeRO only its own partition's."""
        zero = self.deepspeed.zero_optimization()
        for placed in self.parameters():
            name, shape, offset, parameter = placed.name, placed.shape, placed.offset, placed.parameter
            if not zero:
                yield OptimizerPiece(name, shape, offset, parameter, 0, parameter.numel())
            elif part := zero_fragment(self.deepspeed.optimizer, parameter):
                yield OptimizerPiece(
                    name, shape, offset + part.start_in_parameter, part.partition, part.start, part.numel
                )

    def optimizer_state(self, key: Tensor) -> dict[str, Any]:
        """Torch's state of one optimizer tensor (a parameter, or a ZeRO partition); empty before the first step."""
        return self.torch_optimizer.state[key]

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The client optimizer, inside ZeRO's where there is one."""
        optimizer = self.deepspeed.optimizer
        return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


@dataclass(frozen=True)
class OptimizerPiece:
    """A contiguous piece of a portable tensor and where its optimizer state lies on this rank."""

    name: str
    shape: tuple[int, ...]
    """Of the whole portable tensor."""
    offset: int
    """Of the piece, in elements of the flattened portable tensor."""
    key: Tensor
    """What torch's optimizer state is stored under."""
    start: int
    """Where the piece starts inside the flattened ``key``."""
    numel: int


def build_engine(
    model: Method, settings: DeepSpeedSettings, training: TrainingSettings, world: World, ep_size: int
) -> Engine:
    """Place the model's leaders, synchronise its BatchNorm, hand it to DeepSpeed, and fold its teacher.

    Raises:
        ValueError: as ``engine_config``, or ``training.compile`` is set and this machine lacks what it needs.
    """
    config = engine_config(settings, training, world.size)
    deepspeed_logger.setLevel(logging.WARNING)
    model.to(world.device)
    place_leaders(model, ep_size, world.rank)
    model.to(world.device)
    if world.size > 1:
        synchronise_batchnorm(model)
    if training.activation_checkpointing and not recompute_activations(model):
        raise ValueError("training.activation_checkpointing: this method has no blocks for it; set it to false")
    optimizer = new_optimizer(model, training)
    clipped = bool(training.gradient_clipping)
    gradient_norm = GradientNorm(optimizer, world, ep_size, settings.zero_stage, clipped)
    # From every rank DeepSpeed prints that it makes the group of the experts.
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if training.gradient_clipping and settings.zero_stage == 0:
        groups = [layer.ep_group for layer in _expert_layers(model)]
        _clip_before_each_step(optimizer, training.gradient_clipping, groups[0] if groups else None)
    if training.precision == "bf16":
        _compute_in_bf16(model, world.device)
    model.freeze_teacher()
    if training.channels_last:
        use_channels_last(model)
    if training.compile:
        compile_networks(model, world.device)
    return Engine(engine, model, world, ep_size, gradient_norm)


def _expert_layers(model: Method) -> list[LeaderMOELayer]:
    return [module for module in model.modules() if isinstance(module, LeaderMOELayer)]


def _compute_in_bf16(model: Method, device: torch.device) -> None:
    """Autocast, over fp32 weights, inside the forward pass that DeepSpeed calls.

    Around it DeepSpeed would switch it off. By DeepSpeed's own section, ranks would sum gradients in bf16, too.
    """
    model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)  # type: ignore[method-assign]


def _clip_before_each_step(
    optimizer: torch.optim.Optimizer, largest_norm: float, expert_group: dist.ProcessGroup | None
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: Any) -> None:
        clip_whole_gradient(parameters, largest_norm, expert_group)

    optimizer.register_step_pre_hook(clip)
