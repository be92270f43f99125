from __future__ import annotations

import math

import pytest

from unimmad.config import TrainingSettings
from unimmad.training.schedule import Schedule

STEPS = 7


def schedule(**changes: object) -> Schedule:
    values = {"epochs": 10, "learning_rate": 0.01, "balance_epochs": 4, "balance_floor": 0.1, **changes}
    return Schedule(TrainingSettings.model_validate(values), STEPS)


def test_the_papers_cosine_moves_once_an_epoch():
    plan = schedule()
    assert plan.total_steps == 70
    for epoch in range(10):
        rates = {plan.learning_rate(step) for step in range(epoch * STEPS, (epoch + 1) * STEPS)}
        assert len(rates) == 1
        assert rates.pop() == pytest.approx(0.01 * (1 + math.cos(math.pi * epoch / 10)) / 2)
    assert plan.learning_rate(0) == 0.01


def test_by_step_the_cosine_falls_every_step_to_0_at_the_end():
    plan = schedule(schedule="step")
    rates = [plan.learning_rate(step) for step in range(plan.total_steps + 1)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)
    assert (rates[0], rates[35], rates[70]) == (pytest.approx(0.01), pytest.approx(0.005), pytest.approx(0))


@pytest.mark.parametrize("form", ["epoch", "step"])
def test_the_warm_up_rises_linearly_and_then_leaves_the_cosine_alone(form):
    plain, warmed = schedule(schedule=form), schedule(schedule=form, warmup_steps=5)
    for step in range(plain.total_steps):
        share = warmed.learning_rate(step) / plain.learning_rate(step)
        assert share == pytest.approx(min(1, (step + 1) / 5))


def test_the_balance_scale_falls_by_epoch_to_its_floor():
    plan = schedule()
    scales = [plan.balance_scale(epoch * STEPS + 3) for epoch in range(6)]
    assert scales == pytest.approx([1, 0.75, 0.5, 0.25, 0.1, 0.1])
    assert plan.balance_scale(STEPS - 1) == 1
