"""Settings that must stand before torch starts."""

import os
from pathlib import Path

import pytest

# The fixtures' gradients are chaotic in the last bit of the forward pass: an input changed by one part in 10^7 moves
# half of the gradient norms by more than 1e-3, and so does another convolution kernel. These are the kernels (AVX2,
# two threads) with which the fixtures were made.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Several tests share the cores: threads that wait must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


SLOW = ("parity", "training", "slurm")
"""Folders whose tests launch training."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, or one worker would still be at them when the other has nothing left."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW)


@pytest.fixture(scope="session")
def parity_shards(tmp_path_factory) -> Path:
    """The synthetic set, two training samples a class, as shards."""
    from parity.problem import make_shards

    folder = tmp_path_factory.mktemp("parity") / "shards"
    make_shards(folder)
    return folder
