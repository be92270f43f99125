"""TF32 is switched for convolutions and products together, in a way that PyTorch's two interfaces agree on."""

from __future__ import annotations

from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch

from unimmad.model.backends.tf32 import BOTH, NEITHER, Tf32, allow_tf32, choose_for_training, tf32, without_tf32


@pytest.fixture(autouse=True)
def _as_before():
    before, generic = tf32(), torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = generic
    allow_tf32(before)


def by_name() -> tuple[str, str, bool, bool, str]:
    """Of convolutions and products by the newer interface, then by the older ones, which raise where they disagree."""
    backends = torch.backends
    return (
        backends.cudnn.conv.fp32_precision,
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.allow_tf32,
        backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


OFF = ("ieee", "ieee", False, False, "highest")
ON = ("tf32", "tf32", True, True, "high")


@pytest.mark.parametrize("before", [BOTH, NEITHER, Tf32(True, "highest"), Tf32(False, "medium")])
def test_without_it_neither_has_it_and_afterwards_all_is_as_before(before):
    allow_tf32(before)
    told = by_name()
    with without_tf32():
        assert by_name() == OFF
    assert tf32() == before
    assert by_name() == told


def test_threads_inside_at_once_have_none_and_the_last_one_gives_it_back():
    allow_tf32(BOTH)
    first_is_in, first_may_go = Event(), Event()

    def first() -> None:
        with without_tf32():
            first_is_in.set()
            first_may_go.wait(60)

    thread = Thread(target=first)
    thread.start()
    first_is_in.wait(60)
    with without_tf32():
        first_may_go.set()
        thread.join(60)
        assert by_name() == OFF
    assert by_name() == ON


def test_an_error_inside_leaves_all_as_before():
    allow_tf32(BOTH)
    with pytest.raises(KeyError), without_tf32():
        raise KeyError
    assert by_name() == ON


@pytest.mark.parametrize("place", ["everything", "products"])
def test_what_somebody_else_set_by_the_newer_interface_is_off_too_and_comes_back(place):
    allow_tf32(NEITHER)
    if place == "products":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        # Convolutions and products that are set to nothing of their own follow it.
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"
    with without_tf32():
        assert by_name() == OFF
    assert tf32() == Tf32(place == "everything", "high")


@pytest.mark.parametrize("allowed", [BOTH, NEITHER])
def test_what_reads_the_older_interface_still_works(allowed):
    """torch.export among others: it raises where the two interfaces contradict each other."""

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x

    allow_tf32(allowed)
    assert torch.export.export(Square(), (torch.ones(2, 2),)) is not None


def test_a_pytorch_without_the_newer_interface_is_told_by_the_older(monkeypatch):
    older = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", older)
    assert tf32().convolutions
    with without_tf32():
        assert not older.allow_tf32
    assert vars(older) == {"allow_tf32": True}


@pytest.mark.parametrize(("allowed", "expected"), [(True, ON), (False, OFF)])
def test_training_chooses_for_a_gpu(allowed, expected):
    said = choose_for_training(allowed, torch.device("cuda"))
    assert by_name() == expected
    assert ("products of fp32 in TF32" in said) is allowed


def test_training_changes_nothing_on_a_cpu():
    allow_tf32(Tf32(True, "highest"))
    assert choose_for_training(True, torch.device("cpu")) == "no TF32 on cpu"
    assert tf32() == Tf32(True, "highest")
