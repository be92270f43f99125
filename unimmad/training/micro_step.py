"""Forward, loss and backward of one micro-batch through the engine."""

from __future__ import annotations

from torch import Tensor

from unimmad.config import TrainingSettings
from unimmad.data.sample import Batch
from unimmad.model.unimmad import Reconstruction
from unimmad.parallel.engine import Engine
from unimmad.training.loss import Loss, unimmad_loss


def micro_step(
    engine: Engine, batch: Batch, weight_of_token_T: Tensor, balance_scale: float, settings: TrainingSettings
) -> tuple[Reconstruction, Loss]:
    """This rank's part of a micro-batch; the last one of a step also moves the optimizer. Collective."""
    device = engine.world.device
    # All copies before the forward pass: one behind it would wait until the device is done with it.
    on_device, weight_of_token_T = batch.to(device), weight_of_token_T.to(device, non_blocking=True)
    output = engine.deepspeed(on_device.images_TCHW, batch.tokens_per_sample, on_device.slot_of_token_T)
    loss = unimmad_loss(output, weight_of_token_T, balance_scale, settings.focal_gamma, engine.world.size)
    engine.deepspeed.backward(loss.total)
    engine.deepspeed.step()
    return output, loss
