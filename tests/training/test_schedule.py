from __future__ import annotations

import math

import pytest
from methods.peer_fixtures import PeerFixture

from unimmad.config import TrainingSettings
from unimmad.training.schedule import Schedule

STEPS = 7


def schedule(**changes: object) -> Schedule:
    values = {"epochs": 10, "learning_rate": 0.01, **changes}
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


def test_steps_take_the_place_of_epochs():
    plan = schedule(schedule="step", steps=30)
    assert plan.total_steps == 30
    assert plan.learning_rate(15) == pytest.approx(0.005)
    assert schedule(steps=35).learning_rate(34) == pytest.approx(0.01 * (1 + math.cos(math.pi * 28 / 35)) / 2)


def test_a_constant_rate_and_one_that_drops():
    assert {schedule(schedule="constant").learning_rate(step) for step in range(70)} == {0.01}
    dropped = schedule(schedule="drop")
    assert [dropped.learning_rate(step) for step in (0, 55, 56, 69)] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_a_cosine_ends_at_its_share():
    plan = schedule(schedule="step", final_rate_fraction=0.2)
    assert [plan.learning_rate(step) for step in (0, 35, 70)] == pytest.approx([0.01, 0.006, 0.002])


def test_dinomalys_schedule_is_its_authors():
    fixture = PeerFixture.read("Dinomaly")
    settings = {"steps": 10_000, "learning_rate": 2e-3, "warmup_steps": 100, "final_rate_fraction": 0.1}
    plan = schedule(schedule="warmup_cosine", **settings)
    rates = [plan.learning_rate(int(step)) for step in fixture.outputs["schedule_iterations"]]
    assert rates == pytest.approx(fixture.facts["schedule_lr"], rel=1e-6, abs=1e-12)
