from __future__ import annotations

import pytest
import torch

from unimmad.parallel.world import World
from unimmad.training import utilisation
from unimmad.training.utilisation import Utilisation

CPU = torch.device("cpu")


def multiply(rows: int) -> None:
    torch.ones(rows, 8, requires_grad=True).mm(torch.ones(8, 16)).sum().backward()


def test_only_the_first_micro_batch_is_counted_and_backward_with_it(monkeypatch):
    monkeypatch.setattr(utilisation, "matrix_rate", lambda dtype, _: {torch.bfloat16: 1e6, torch.float32: 5e5}[dtype])
    ours = Utilisation(World(0, 4, 0, CPU), "bf16")
    for rows in (10, 3):
        with ours.counting():
            multiply(rows)
        ours.saw(rows)
    a_token = 2 * 2 * 8 * 16
    assert ours.share(tokens=100, seconds=2.0) == pytest.approx(a_token * 100 / 2.0 / (1e6 * 4))


def test_other_ranks_measure_and_count_nothing(monkeypatch):
    monkeypatch.setattr(utilisation, "matrix_rate", lambda *_: pytest.fail("measured"))
    ours = Utilisation(World(1, 4, 1, CPU), "fp32")
    with ours.counting():
        multiply(10)
    ours.saw(10)
    assert ours.share(tokens=100, seconds=2.0) is None


def test_compiled_networks_run_as_they_are(monkeypatch):
    """Counting would take one step uncompiled, on rank 0 alone."""
    monkeypatch.setattr(utilisation, "counting_operations", lambda: pytest.fail("counted"))
    ours = Utilisation(World(0, 1, 0, CPU), "fp32", compiled=True)
    with ours.counting():
        multiply(10)
    ours.saw(10)
    assert ours.share(tokens=100, seconds=2.0) is None
