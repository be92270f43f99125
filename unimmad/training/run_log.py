"""What a run says while it goes: a progress line, TensorBoard, messages. Only rank 0 prints and writes.

Letters: L leaders, R rows = (level, branch) pairs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from unimmad.config import Recipe
from unimmad.evaluation.evaluate import Evaluation
from unimmad.model.anomaly_map import anomaly_maps
from unimmad.model.unimmad import Reconstruction
from unimmad.parallel.dispatch import Traffic
from unimmad.parallel.world import World
from unimmad.training.loss import Loss
from unimmad.training.run_folder import TENSORBOARD

logger = logging.getLogger(__name__)

MAPS_SHOWN = 4
POINTS_BETWEEN_PICTURES = 10
"""Pictures take a second to draw; they come with every tenth point of the curves, and with the last."""
SECONDS_BETWEEN_LINES = 10.0
TOLD_WAITING = 0.1
"""Share of the time from which the progress line says that steps wait for data."""


class RunLog:
    """Collects what steps give and shows their means every ``log_every`` steps; no step waits for the device."""

    def __init__(self, run: Path, world: World, recipe: Recipe, start: int, end: int) -> None:
        self.world = world
        self.recipe = recipe
        self._losses: list[Tensor] = []
        self._usage_RL: Tensor | None = None
        self._traffic = Traffic()
        self._last_output: Reconstruction | None = None
        self._since = time.monotonic()
        self._waited = 0.0
        self._steps_since = 0
        self._pictured = 0
        # Points of steps beyond the checkpoint that is continued go; the point of ``start`` itself stays.
        purge = start + 1 if start else None
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=purge) if world.is_main else None
        self._bar = tqdm(
            initial=start,
            total=end,
            desc=f"train {recipe.name}",
            unit="step",
            disable=not world.is_main,
            mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """What runs inside is time that the step waits for its batch."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def add(self, output: Reconstruction, loss: Loss, traffic: Traffic) -> None:
        """Take in one micro-batch; nothing is fetched from the device."""
        self._traffic += traffic
        self._losses.append(torch.stack([loss.total.detach(), loss.reconstruction.detach(), loss.balance.detach()]))
        usage_RL = leader_usage(output, self.recipe.model.leaders)
        self._usage_RL = usage_RL if self._usage_RL is None else self._usage_RL + usage_RL
        self._last_output = output

    def due(self, step: int) -> bool:
        """Whether the step that ends with number ``step`` (counted from 1) is one to show."""
        return step % self.recipe.training.log_every == 0 or step == self._bar.total

    def step(self, step: int, rate: float) -> None:
        """Close one optimizer step (counted from 1); show the means where their turn has come."""
        self._steps_since += 1
        self._bar.update()
        if not self.due(step):
            return
        seconds = time.monotonic() - self._since
        total, reconstruction, balance, waited = self._means(self._waited / seconds)
        samples_per_second = self._steps_since * self.recipe.training.global_batch / seconds
        usage_RL = self._summed_usage()
        traffic = self._summed_traffic()
        waits = f", {waited:.0%} waiting for data" if waited > TOLD_WAITING else ""
        self._bar.set_postfix_str(f"loss {total:.4f}, lr {rate:.1e}, {samples_per_second:.1f} samples/s{waits}")
        if self._writer is not None:
            self._writer.add_scalar("waited_for_data", waited, step)
            self._write(step, rate, (total, reconstruction, balance), samples_per_second, usage_RL)
            self._write_traffic(step, traffic)
        self._losses, self._usage_RL, self._traffic = [], None, Traffic()
        self._since, self._waited, self._steps_since = time.monotonic(), 0.0, 0

    def message(self, text: str) -> None:
        """A line that does not disturb the progress line."""
        if self.world.is_main:
            tqdm.write(text, file=sys.stderr)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Metrics of an evaluation during training, to TensorBoard and as one line."""
        mean = evaluation.report.mean_of_classes()
        known = {key: value for key, value in mean.metrics.items() if value is not None}
        shown = "  ".join(f"{key} {value:.3f}" for key, value in known.items())
        self.message(f"step {step}: test split, mean of classes: {shown}  ({evaluation.tables[0].parent})")
        if self._writer is not None:
            for key, value in known.items():
                self._writer.add_scalar(f"test/{key}", value, step)

    def _means(self, waited: float) -> tuple[float, float, float, float]:
        """Of the three losses and of ``waited``, over all ranks."""
        losses_3 = torch.stack(self._losses).mean(dim=0)
        mean_4 = torch.cat([losses_3, losses_3.new_tensor([waited])])
        if self.world.size > 1:
            dist.all_reduce(mean_4)
            mean_4 /= self.world.size
        total, reconstruction, balance, waited = mean_4.tolist()
        return total, reconstruction, balance, waited

    def _summed_usage(self) -> Tensor:
        assert self._usage_RL is not None
        if self.world.size > 1:
            dist.all_reduce(self._usage_RL)
        return self._usage_RL.cpu()

    def _summed_traffic(self) -> Traffic:
        if self.world.size == 1:
            return self._traffic
        bytes_2 = torch.tensor([self._traffic.dispatched, self._traffic.routed], device=self.world.device)
        dist.all_reduce(bytes_2)
        dispatched, routed = bytes_2.tolist()
        return Traffic(dispatched, routed)

    def _write_traffic(self, step: int, traffic: Traffic) -> None:
        """Of all ranks since the last point; the ratio is 1 where nothing but routed feature maps is sent."""
        writer = self._writer
        assert writer is not None
        writer.add_scalar("experts/dispatched_bytes", traffic.dispatched, step)
        writer.add_scalar("experts/routed_bytes", traffic.routed, step)
        if traffic.routed:
            writer.add_scalar("experts/dispatched_over_routed", traffic.dispatched / traffic.routed, step)

    def _write(
        self, step: int, rate: float, losses: tuple[float, float, float], samples_per_second: float, usage_RL: Tensor
    ) -> None:
        writer, output = self._writer, self._last_output
        assert writer is not None
        assert output is not None
        for name, value in zip(("total", "reconstruction", "balance"), losses, strict=True):
            writer.add_scalar(f"loss/{name}", value, step)
        writer.add_scalar("learning_rate", rate, step)
        writer.add_scalar("samples_per_second", samples_per_second, step)
        writer.add_scalar("experts/leaders_in_use", float((usage_RL > 0).float().mean()), step)
        pictured = step // (self.recipe.training.log_every * POINTS_BETWEEN_PICTURES)
        if pictured == self._pictured and step != self._bar.total:
            return
        self._pictured = pictured
        writer.add_figure("experts/usage", usage_figure(usage_RL, len(output.routings[0])), step)
        maps_BHW = anomaly_maps(
            output.distances, output.sample_of_token_T, output.batch, self.recipe.model.image_size
        ).detach()
        shown = maps_BHW[:MAPS_SHOWN, None]
        writer.add_images("anomaly_maps", shown / shown.amax().clamp_min(1e-8), step)


def leader_usage(output: Reconstruction, leaders: int) -> Tensor:
    """How often each leader was routed to, [R, L]."""
    return torch.stack(
        [
            torch.nn.functional.one_hot(routing.leaders_TK, leaders).sum(dim=(0, 1))
            for branches in output.routings
            for routing in branches
        ]
    )


def usage_figure(usage_RL: Tensor, branches: int) -> Figure:
    """A heat map of leaders against levels and branches; each row sums to 1."""
    shares_RL = usage_RL.numpy() / np.maximum(usage_RL.sum(dim=1, keepdim=True).numpy(), 1)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares_RL, aspect="auto", vmin=0)
    axes.set_yticks(
        range(len(shares_RL)),
        [f"level {row // branches + 1}, branch {row % branches + 1}" for row in range(len(shares_RL))],
    )
    axes.set_xlabel("leader")
    figure.colorbar(image, ax=axes, label="share of routed tokens")
    return figure
