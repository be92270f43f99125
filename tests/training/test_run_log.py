"""What a run's log says while it goes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model.test_loss import LEADERS, output_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.config import load_recipe
from unimmad.methods.registry import build_method
from unimmad.model.method import Loss, Method
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.world import World
from unimmad.training import run_log, utilisation
from unimmad.training.run_log import TENSORBOARD, RunLog

RECIPE = load_recipe("tiny", ["training.log_every=2", f"model.leaders={LEADERS}"])
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Clock:
    """A time that passes where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: self.now))

    def passes(self, seconds: float) -> None:
        self.now += seconds


@cache
def model() -> Method:
    return build_method(RECIPE)


def run_steps(run: Path, clock: Clock, waits: list[float], loss: float = 1.0, checkpoint: float = 0.0) -> None:
    """Steps of one second each, before which data are waited for."""
    with RunLog(run, ALONE, RECIPE, model(), start=0, end=len(waits)) as log:
        for step, seconds in enumerate(waits, start=1):
            with log.waiting_for_data():
                clock.passes(seconds)
            clock.passes(1.0)
            with log.counting_operations():
                torch.ones(4, 8) @ torch.ones(8, 16)
            log.add(output_of(3), Loss(torch.tensor(loss), {"reconstruction": torch.tensor(0.75)}), 3, CommStats())
            log.step(step, 1e-3, lambda: torch.tensor(9.0))
            with log.besides():
                clock.passes(checkpoint)


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / TENSORBOARD))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_share_of_time_that_steps_wait_for_data(tmp_path, monkeypatch, capsys):
    run_steps(tmp_path, Clock(monkeypatch), waits=[3.0, 1.0, 0.0, 0.0])
    assert scalars(tmp_path, "waited_for_data") == [(2, pytest.approx(4 / 6)), (4, 0.0)]
    shown = capsys.readouterr().err
    assert "67% waiting for data" in shown
    assert shown.rindex("67% waiting") < shown.rindex("samples/s"), "no longer said when nothing waits"


def test_points_are_means_since_the_last_point(tmp_path, monkeypatch):
    run_steps(tmp_path, Clock(monkeypatch), waits=[0.0, 0.0], loss=1.5)
    assert scalars(tmp_path, "loss/total") == [(2, 1.5)]
    assert scalars(tmp_path, "samples_per_second") == [(2, RECIPE.training.global_batch)]


def test_the_gradient_memory_and_speed_of_a_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utilisation, "matrix_rate", lambda *_: 1e4)
    run_steps(tmp_path, Clock(monkeypatch), waits=[0.0, 1.0], checkpoint=50.0)
    assert scalars(tmp_path, "gradient_norm") == [(2, 3.0)]
    assert scalars(tmp_path, "step_seconds") == [(2, 1.5)], "without the time of the checkpoint"
    operations = 2 * 4 * 8 * 16  # of three tokens, in each of two steps
    assert scalars(tmp_path, "mfu") == [(2, pytest.approx(2 * operations / 3.0 / 1e4))]
    ((_, peak),) = scalars(tmp_path, "peak_memory_gib")
    assert 0.1 < peak < 100
    assert "gradient 3, lr 1.0e-03" in capsys.readouterr().err


def test_the_gradient_is_asked_for_where_a_point_is_due_only(tmp_path, monkeypatch):
    asked = []
    with RunLog(tmp_path, ALONE, RECIPE, model(), start=0, end=4) as log:
        for step in range(1, 4):
            log.add(output_of(3), Loss(torch.ones(()), {}), 3, CommStats())
            log.step(step, 1e-3, lambda step=step: asked.append(step) or torch.ones(()))
    assert asked == [2]
