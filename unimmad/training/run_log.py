"""What a run says while it goes: a progress line, TensorBoard, messages. Only rank 0 prints and writes.

Letters: L leaders, R rows = (level, branch) pairs.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from unimmad.config import Recipe
from unimmad.evaluation.evaluate import Evaluation
from unimmad.model.method import Loss, Method
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.world import World
from unimmad.profiling.machine import peak_bytes
from unimmad.training.run_folder import TENSORBOARD
from unimmad.training.step_totals import StepTotals, Totals
from unimmad.training.utilisation import Utilisation

logger = logging.getLogger(__name__)

MAPS_SHOWN = 4
POINTS_BETWEEN_PICTURES = 10
"""Pictures take a second to draw; they come with every tenth point of the curves, and with the last."""
SECONDS_BETWEEN_LINES = 10.0
GIB = 2**30
TOLD_WAITING = 0.1
"""Share of the time from which the progress line says that steps wait for data."""


@dataclass(frozen=True)
class Speed:
    """Since the last point; its fields are the names of TensorBoard's curves."""

    step_seconds: float
    samples_per_second: float
    mfu: float | None
    """Share of the devices' rate of large matrix products; None where operations are not counted."""


class RunLog:
    """Collects what steps give and shows their means every ``log_every`` steps; no step waits for the device."""

    def __init__(self, run: Path, world: World, recipe: Recipe, model: Method, start: int, end: int) -> None:
        self.world = world
        self.model = model
        self.recipe = recipe
        self._totals = StepTotals(model.leaders)
        self._utilisation = Utilisation(world, recipe.training.precision, recipe.training.compile)
        self._last_output: Any = None
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

    @contextmanager
    def besides(self) -> Iterator[None]:
        """What runs inside (checkpoints, evaluations) is not part of a step's time."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def counting_operations(self) -> AbstractContextManager[None]:
        """What runs inside is a micro-batch; the run's first one is counted."""
        return self._utilisation.counting()

    def add(self, output: Any, loss: Loss, tokens: int, comm_stats: CommStats) -> None:
        """Take in one micro-batch of so many tokens; nothing is fetched from the device."""
        self._totals.add(loss, self.model.routings(output), tokens, comm_stats)
        self._utilisation.saw(tokens)
        self._last_output = output

    def due(self, step: int) -> bool:
        """Whether the step that ends with number ``step`` (counted from 1) is one to show."""
        return step % self.recipe.training.log_every == 0 or step == self._bar.total

    def step(self, step: int, rate: float, squared_norm: Callable[[], Tensor]) -> None:
        """Close one optimizer step (counted from 1); show the means where their turn has come, which is collective.

        ``squared_norm`` gives this rank's share of the gradient's squared norm, and is called only then.
        """
        self._steps_since += 1
        self._bar.update()
        if not self.due(step):
            return
        seconds = time.monotonic() - self._since
        totals = self._totals.over_ranks(
            self.world, self._waited / seconds, squared_norm(), peak_bytes(self.world.device)
        )
        speed = Speed(
            step_seconds=seconds / self._steps_since,
            samples_per_second=self._steps_since * self.recipe.training.global_batch / seconds,
            mfu=self._utilisation.share(totals.tokens, seconds),
        )
        self._bar.set_postfix_str(_line(rate, totals, speed))
        if self._writer is not None:
            self._write(step, rate, totals, speed)
            self._write_traffic(step, totals.comm_stats)
            self._draw(step, totals.usage_RL)
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

    def _write_traffic(self, step: int, comm_stats: CommStats) -> None:
        """Of all ranks since the last point; the ratio is 1 where nothing but routed feature maps is sent."""
        writer = self._writer
        assert writer is not None
        writer.add_scalar("experts/dispatched_bytes", comm_stats.dispatched, step)
        writer.add_scalar("experts/routed_bytes", comm_stats.routed, step)
        if comm_stats.routed:
            writer.add_scalar("experts/dispatched_over_routed", comm_stats.dispatched / comm_stats.routed, step)

    def _write(self, step: int, rate: float, totals: Totals, speed: Speed) -> None:
        assert self._writer is not None
        scalars = {
            **{f"loss/{name}": value for name, value in totals.losses.items()},
            "learning_rate": rate,
            "gradient_norm": totals.gradient_norm,
            **{name: value for name, value in asdict(speed).items() if value is not None},
            "peak_memory_gib": totals.peak_bytes / GIB,
            "waited_for_data": totals.waited,
        }
        if len(totals.usage_RL):
            scalars["experts/leaders_in_use"] = float((totals.usage_RL > 0).float().mean())
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def _draw(self, step: int, usage_RL: Tensor) -> None:
        writer, output = self._writer, self._last_output
        assert writer is not None
        pictured = step // (self.recipe.training.log_every * POINTS_BETWEEN_PICTURES)
        if pictured == self._pictured and step != self._bar.total:
            return
        self._pictured = pictured
        if len(usage_RL):
            writer.add_figure("experts/usage", usage_figure(usage_RL, len(self.model.kernel_sizes)), step)
        maps_BHW = self.model.maps(output).detach()
        shown = maps_BHW[:MAPS_SHOWN, None]
        writer.add_images("anomaly_maps", shown / shown.amax().clamp_min(1e-8), step)


def _line(rate: float, totals: Totals, speed: Speed) -> str:
    """What stands behind the progress bar."""
    waits = f", {totals.waited:.0%} waiting for data" if totals.waited > TOLD_WAITING else ""
    mfu = "" if speed.mfu is None else f", MFU {speed.mfu:.0%}"
    return (
        f"loss {totals.losses['total']:.4f}, gradient {totals.gradient_norm:.2g}, lr {rate:.1e}, "
        f"{speed.samples_per_second:.1f} samples/s{mfu}, {totals.peak_bytes / GIB:.1f} GiB{waits}"
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
