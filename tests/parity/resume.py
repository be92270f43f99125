"""A run saved at one layout and continued at others, by real launches of the trainer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from launches import free_port, run, weights
from parity.cases import Layout
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import find_checkpoint

SAVED_AT = Layout(2, 2, 1)
CONTINUED_AT = (Layout(2, 2, 1), Layout(1, 1, 0), Layout(2, 1, 2), Layout(4, 4, 1), Layout(4, 2, 2))
STEPS = 6
HALF = 3
# Small steps, since Adam turns the last bit of a small gradient into a whole step.
SETTINGS = (
    "--set",
    "training.learning_rate=1e-5",
    "--set",
    "training.checkpoint_every=3",
    "--set",
    "training.epochs=2",
    "--set",
    "data.workers=1",
)
RESAVE = Path(__file__).with_name("resave_worker.py")
SMOOTH_TRAIN = Path(__file__).with_name("smooth_train.py")


@dataclass(frozen=True)
class Resumed:
    layout: Layout
    resaved_equal: bool
    """Loaded at this layout and saved again: every weight and moment bit for bit as it was."""
    rates_equal: bool
    """The learning rates of the continued steps are those of the uninterrupted run."""
    loss: float
    """Largest relative difference of the continued steps' losses."""
    bit_for_bit: bool
    """Losses, final weights and moments are the very same."""


class ResumeTable:
    """One uninterrupted run, one interrupted, and its continuations."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards, self.folder = shards, folder
        self._train(folder / "whole", SAVED_AT, STEPS)
        self._train(folder / "half", SAVED_AT, HALF)
        self.whole_losses, self.whole_rates = _curves(folder / "whole")
        self.whole_weights = weights(_run(folder / "whole"))
        self.half_weights = weights(_run(folder / "half"))

    def rows(self, layouts: Sequence[Layout] = CONTINUED_AT) -> Iterator[Resumed]:
        for layout in layouts:
            yield self._row(layout)

    def _row(self, layout: Layout) -> Resumed:
        name = f"w{layout.world}-e{layout.ep_size}-z{layout.zero_stage}"
        resaved = self._resave(self.folder / f"resaved-{name}", layout)
        folder = self.folder / f"continued-{name}"
        shutil.copytree(self.folder / "half", folder)
        said = self._train(folder, layout, STEPS)
        assert f"at step {HALF}" in said
        losses, rates = _curves(folder)
        continued = range(HALF + 1, STEPS + 1)
        differences = [abs(losses[step] - self.whole_losses[step]) / self.whole_losses[step] for step in continued]
        return Resumed(
            layout=layout,
            resaved_equal=_equal(resaved, self.half_weights),
            rates_equal=all(rates[step] == self.whole_rates[step] for step in continued),
            loss=max(differences),
            bit_for_bit=losses == self.whole_losses and _equal(weights(_run(folder)), self.whole_weights),
        )

    def _train(self, folder: Path, layout: Layout, steps: int) -> str:
        folder.mkdir(exist_ok=True)
        config = folder / "ds.json"
        config.write_text(
            json.dumps({"unimmad": {"ep_size": layout.ep_size}, "zero_optimization": {"stage": layout.zero_stage}})
        )
        argv = ["--deepspeed_config", str(config), "--recipe", "tiny", "--data", str(self.shards)]
        return _launch(layout, str(SMOOTH_TRAIN), *argv, *SETTINGS, "--max-steps", str(steps), folder=folder)

    def _resave(self, folder: Path, layout: Layout) -> dict[str, torch.Tensor]:
        folder.mkdir()
        argv = [str(find_checkpoint(_run(self.folder / "half"))), str(folder)]
        options = ["--ep-size", str(layout.ep_size), "--zero", str(layout.zero_stage)]
        _launch(layout, str(RESAVE), *argv, *options, folder=folder)
        return weights(folder)


def _launch(layout: Layout, *argv: str, folder: Path) -> str:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    done = run([*launcher, "--num_accelerators", str(layout.world), *argv], folder)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stderr


def _run(folder: Path) -> Path:
    return folder / "runs" / "tiny"


def _curves(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Total loss and learning rate by step, as TensorBoard shows them; of repeated steps the last."""
    events = EventAccumulator(str(_run(folder) / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss/total")}
    return losses, {event.step: event.value for event in events.Scalars("learning_rate")}


def _equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
