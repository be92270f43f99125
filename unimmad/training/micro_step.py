"""Forward, loss and backward of one micro-batch through the engine, and whether all is finite afterwards."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.config import TrainingSettings
from unimmad.data.sample import Batch
from unimmad.model.finite import all_finite
from unimmad.model.method import Loss, StepFacts
from unimmad.parallel.engine import Engine

_NEVER = torch.iinfo(torch.int64).max


def micro_step(
    engine: Engine, batch: Batch, weight_of_token_T: Tensor, settings: TrainingSettings, step: int = 0, epoch: int = 0
) -> tuple[Any, Loss]:
    """This rank's part of a micro-batch; the last one of a step also moves the optimizer. Collective.

    Returns:
        What the method's forward pass gave, and its loss.
    """
    world = engine.world
    # All copies before the forward pass: one behind it would wait until the device is done with it.
    on_device, weight_of_token_T = batch.to(world.device), weight_of_token_T.to(world.device, non_blocking=True)
    facts = StepFacts(weight_of_token_T, settings, step, epoch, world.size, world.global_sum)
    drawn = {} if on_device.drawn_TCHW is None else {"drawn_TCHW": on_device.drawn_TCHW}
    output = engine.deepspeed(on_device.images_TCHW, batch.tokens_per_sample, on_device.slot_of_token_T, **drawn)
    loss = engine.model.loss(output, facts)
    engine.deepspeed.backward(loss.total)
    engine.deepspeed.step()
    return output, loss


class LossGuard:
    """Notices a loss, weights or optimizer state that are no longer finite, before a checkpoint is made of them.

    The first step with a bad loss is remembered on the device; only ``first_bad_step`` waits for it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._first_bad = torch.tensor(_NEVER, device=engine.world.device)

    def watch(self, step: int, loss: Tensor) -> None:
        """Take in the loss of a micro-batch of optimizer step ``step`` (counted from 0)."""
        here = torch.full_like(self._first_bad, _NEVER).masked_fill_(~loss.detach().isfinite(), step)
        self._first_bad = torch.minimum(self._first_bad, here)

    def first_bad_step(self) -> int | None:
        """The first step whose loss was NaN or infinite on any rank; None where all were good. Collective."""
        first = self._first_bad.clone()
        if self._engine.world.size > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        return None if int(first) == _NEVER else int(first)

    def weights_are_finite(self) -> bool:
        """Whether what a checkpoint would hold is finite on all ranks: trained weights, running statistics, optimizer
        state. Collective."""
        engine = self._engine
        weights = [placed.parameter.detach() for placed in engine.parameters()]
        keys = {id(piece.key): piece.key for piece in engine.optimizer_pieces()}.values()
        state = [value for key in keys for value in engine.optimizer_state(key).values() if isinstance(value, Tensor)]
        tensors = (*weights, *engine.model.buffers(), *state)
        return engine.world.all_true(all(all_finite(tensor) for tensor in tensors))
