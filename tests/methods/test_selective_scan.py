"""The scan by blocks and sections against the recurrence written token by token."""

import pytest
import torch
from torch import Tensor

from unimmad.methods import selective_scan as module
from unimmad.methods.selective_scan import selective_scan

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def stepwise(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    h, outputs = torch.zeros_like(A), []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(), delta.unbind(), B.unbind(), C.unbind(), strict=True):
        h = torch.exp(delta_t[:, None, :] * A) * h + (delta_t * u_t)[:, None, :] * B_t[..., None]
        outputs.append((h * C_t[..., None]).sum(1))
    return torch.stack(outputs)


def arguments(length: int, dtype: torch.dtype, step: float = 0.5, rows: int = 3) -> list[Tensor]:
    torch.manual_seed(length)
    channels, states = 4, 5
    u = torch.randn(length, rows, channels)
    delta = torch.rand(length, rows, channels) * step
    A = -torch.rand(rows, states, channels) * states
    B, C = torch.randn(2, length, rows, states)
    return [value.to(dtype).requires_grad_() for value in (u, delta, A, B, C)]


def outputs_and_gradients(scan, values: list[Tensor], **settings) -> list[Tensor]:
    y = scan(*values, **settings)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), values)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= TOLERANCE[one.dtype] * other.abs().max().clamp_min(1e-30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 15, 17, 100, 1023, pytest.param(4096, marks=pytest.mark.long)])
def test_equals_the_stepwise_recurrence(length, dtype, monkeypatch):
    monkeypatch.setitem(module.BUFFER_ELEMENTS, "cpu", 800)  # two rows at a time, 20 tokens
    values = arguments(length, dtype)
    stepped = outputs_and_gradients(stepwise, values)
    for sections in (1, 7):
        assert_same(outputs_and_gradients(selective_scan, values, sections=sections), stepped)


@pytest.mark.parametrize("sections", [1, 4])
@pytest.mark.parametrize("step", [1e-6, 50.0, 1e4])
def test_any_step_size_is_safe(step, sections):
    values = arguments(130, torch.float32, step)
    ours = outputs_and_gradients(selective_scan, values, sections=sections)
    assert all(value.isfinite().all() for value in ours)
    assert_same(ours, outputs_and_gradients(stepwise, values))


def test_groups_of_rows_and_blocks_of_tokens_do_not_show(monkeypatch):
    values = arguments(60, torch.float64, rows=5)
    whole = outputs_and_gradients(selective_scan, values)
    monkeypatch.setitem(module.BUFFER_ELEMENTS, "cpu", 1)  # one row, 16 tokens
    assert_same(outputs_and_gradients(selective_scan, values), whole)


def test_states_of_a_long_sequence_are_never_all_kept():
    """What is saved for the backward pass is a small part of the states."""
    saved: list[int] = []

    def note(value: Tensor) -> Tensor:
        saved.append(value.numel())
        return value

    values = arguments(4096, torch.float32, rows=8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        y = selective_scan(*values)
    states = y.numel() * 5
    assert sum(saved) < 1.5 * sum(value.numel() for value in values) + y.numel() + states / 16


def test_autocast_leaves_the_scan_alone():
    values = arguments(40, torch.float32)
    plain = outputs_and_gradients(selective_scan, values)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(outputs_and_gradients(selective_scan, values), plain)


class Scan(torch.nn.Module):
    def forward(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C)


def test_a_program_for_any_number_of_rows():
    rows = torch.export.Dim("rows", min=1)
    by_position = {1: rows}
    shapes = (by_position, by_position, {0: rows}, by_position, by_position)
    with torch.no_grad():
        program = torch.export.export(Scan(), tuple(arguments(37, torch.float64)), dynamic_shapes=shapes)
        values = arguments(37, torch.float64, rows=8)
        assert_same([program.module()(*values)], [stepwise(*values)])
    assert len(program.graph.nodes) < 100
