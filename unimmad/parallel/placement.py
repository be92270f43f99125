"""Puts a model's leaders where they live, and knows every parameter's portable name.

A portable name is the parameter's name in the local form; a checkpoint uses no other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from unimmad.config import MethodSettings
from unimmad.model.cross_moe import LocalRouting, MiMoEBranch
from unimmad.model.method import Method
from unimmad.parallel.moe import LeaderMoE, expert_parallel_slice, plan_all

_PORTABLE = (
    (".routed.deepspeed_moe.gate.wg.", ".routed.gate.linear."),
    (".routed.deepspeed_moe.experts.", ".routed.leaders."),
)


@dataclass(frozen=True)
class PlacedParameter:
    """A parameter of this rank as a contiguous piece of the portable tensor of that name."""

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    """Of the whole portable tensor."""
    offset: int
    """Where this rank's piece starts, counted in elements of the flattened portable tensor."""
    expert_parallel: bool


def effective_ep_size(asked: int, world_size: int, model: MethodSettings) -> int:
    """The largest common divisor of ep_size, world size and leaders (and banks, where there are several).

    Warns once where that is not what was asked for. A method without experts has 1.
    """
    if asked < 1:
        raise ValueError(f"ep_size {asked} in the DeepSpeed configuration must be 1 or more")
    if not model.expert_counts:
        return 1
    effective = math.gcd(asked, world_size, *model.expert_counts)
    if effective != asked:
        counts = ", ".join(
            f"{count} {what}" for count, what in zip(model.expert_counts, ("leaders", "banks"), strict=False)
        )
        warnings.warn(
            f"ep_size {asked} does not fit world size {world_size}, {counts}: using {effective}",
            stacklevel=2,
        )
    return effective


def place_leaders(model: Method, ep_size: int, rank: int) -> None:
    """Replace the local form of every branch's routed experts by the DeepSpeed form, in place.

    Ranks of one expert-parallel group are neighbours, so a group stays inside a node where it fits.
    """
    layers = []
    for module in model.modules():
        if isinstance(module, MiMoEBranch):
            assert isinstance(module.routed, LocalRouting)
            moe = LeaderMoE(module.routed, ep_size, rank % ep_size)
            module.routed = moe
            layers.append(moe.deepspeed_moe)
            banks_GNEEkk = module.bank.kernels_GNEEkk
            if len(banks_GNEEkk) > 1:
                # Several banks live with their leaders; a single one is dense, the same on every rank.
                module.bank.kernels_GNEEkk = expert_parallel_slice(
                    banks_GNEEkk, ep_size, rank % ep_size, moe.expert_group_name
                )
                if module.bank.trained_G is not None:
                    _train_banks(module.bank.kernels_GNEEkk, module.bank.trained_G, ep_size, rank % ep_size)
    if ep_size > 1:
        model.on_routed = partial(plan_all, layers)


def _train_banks(kernels_GNEEkk: nn.Parameter, trained_G: Sequence[bool], ep_size: int, ep_rank: int) -> None:
    """Let gradients reach some of this rank's banks alone: the optimizer then leaves the others as they are."""
    of_rank = torch.tensor(trained_G).chunk(ep_size)[ep_rank].view(-1, *[1] * (kernels_GNEEkk.dim() - 1))
    kernels_GNEEkk.register_hook(lambda gradient: gradient * of_rank.to(gradient))


def fqn(name: str) -> str:
    """The name of a parameter or buffer in the local form."""
    for parallel, local in _PORTABLE:
        name = name.replace(parallel, local)
    return name


def placed_parameters(model: Method, ep_size: int, rank: int, with_frozen: bool = False) -> Iterator[PlacedParameter]:
    """Every trainable parameter of this rank, in the model's order; ``with_frozen`` all."""
    for name, parameter in model.named_parameters():
        if not (with_frozen or parameter.requires_grad):
            continue
        expert_parallel = not getattr(parameter, "allreduce", True)
        shape = tuple(parameter.shape)
        offset = 0
        if expert_parallel:
            offset = (rank % ep_size) * parameter.numel()
            shape = (shape[0] * ep_size, *shape[1:])
        yield PlacedParameter(fqn(name), parameter, shape, offset, expert_parallel)
