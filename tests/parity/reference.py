"""The reference: one process, the local form, torch's own optimizer; no DeepSpeed, no ranks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from parity.cases import STEPS, Problem
from parity.parts import InParts
from parity.problem import Batches, Smooth, starting_model, weights_of_tokens
from parity.record import Facts, Record, leaders_of, margin_of

from unimmad.model.loss import unimmad_loss


def run_reference(
    shards: Path, problem: Problem, parts: int = 1, backwards: bool = False, device: str = "cpu"
) -> Record:
    """Five plain SGD steps.

    With ``parts`` > 1 the same computed part by part, with ``backwards`` the samples in reverse: only rounding differs.
    """
    order = slice(None, None, -1) if backwards else slice(None)
    batches = Batches(shards, problem)
    settings = problem.recipe.training
    model = starting_model(problem, batches)
    model.to(device).freeze_teacher()  # in bfloat16 folding is more than rounding of sums
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=settings.learning_rate)
    losses, routing, gradients, norm, margin = [], [], {}, 0.0, 1.0
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(problem.accumulation):
            batch = batches.at(step * problem.accumulation + part, order).to(device)
            weight_of_token_T = weights_of_tokens(batch).to(device)
            with Smooth(), InParts(parts) if parts > 1 else contextlib.nullcontext():
                with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bf16"):
                    output = model(batch.images_TCHW, batch.tokens_per_sample, batch.slot_of_token_T)
                loss = unimmad_loss(output, weight_of_token_T, 1.0, settings.focal_gamma).total
                (loss / problem.accumulation).backward()
            losses.append(loss.item())
            routing.append(leaders_of(output))
            margin = min(margin, margin_of(output)) if step == 0 else margin
        if step == 0:
            norm = sum(float(parameter.grad.double().square().sum()) for parameter in trained.values()) ** 0.5
        if settings.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(trained.values(), settings.gradient_clipping)
        if step == 0:
            gradients = {name: parameter.grad.cpu().clone() for name, parameter in trained.items()}
        optimizer.step()
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return Record(Facts(losses, norm), routing, margin, gradients, weights)
