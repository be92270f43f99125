from __future__ import annotations

import time

import pytest
import torch

from unimmad.profiling import machine
from unimmad.profiling.machine import matrix_rate

CPU = torch.device("cpu")


def test_the_rate_is_operations_over_time_and_soon_known(monkeypatch):
    monkeypatch.setitem(machine.RATE_SIZE, "cpu", 64)
    seconds = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(seconds)))
    assert matrix_rate(torch.float32, CPU) == 2 * 64**3
    assert next(seconds) == 2


def test_measuring_moves_no_random_state_and_takes_less_than_a_second():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    started = time.process_time()
    assert matrix_rate(torch.float32, CPU) > 0
    assert time.process_time() - started < 1.0 * torch.get_num_threads() + 0.5
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_precisions_have_a_rate(dtype, monkeypatch):
    monkeypatch.setitem(machine.RATE_SIZE, "cpu", 64)
    monkeypatch.setattr(machine, "RATE_SECONDS", 1e-4)
    assert matrix_rate(dtype, CPU) > 0
