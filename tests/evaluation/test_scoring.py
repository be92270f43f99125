"""What is scored on."""

from __future__ import annotations

import pytest
import torch

from unimmad.evaluation import scoring


def test_a_gpu_that_is_there_is_checked_without_being_touched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(scoring, "named_device", lambda name: pytest.fail(f"{name} was touched"))
    for name in (None, "cuda", "cuda:1"):
        scoring.check_device(name)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="device cuda:99 can't be used here"):
        scoring.check_device("cuda:99")
