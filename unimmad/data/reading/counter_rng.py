"""Where all randomness of the training data comes from: words that depend on seed, purpose, epoch and number alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What words are for. Part of the order rule: a purpose keeps its number for good."""

    CLASS_OF_POSITION = 0
    PLACE_OF_SAMPLE = 1
    PLACE_OF_SHARD = 2
    SUBSTITUTE = 3
    MODALITY_DROPOUT = 4
    VIEW = 5
    ANOMALY = 6
    REPLAY = 7


def counter_rng(seed: int, purpose: Purpose, epoch: int, number: int, count: int) -> NDArray[np.uint64]:
    """Uniform 64-bit integers of one purpose; ``number`` is that of a class or a position, as the purpose has it.

    Philox's key is the seed and the upper three words of its counter say what the numbers are for, so two
    purposes can never share numbers. Raw output is used because numpy promises it for good, unlike that of
    its distributions.
    """
    counter = np.array([0, number, epoch, purpose], dtype=np.uint64)
    return np.random.Philox(key=seed, counter=counter).random_raw(count)


def below(raw: NDArray[np.uint64] | np.uint64, bound: int) -> NDArray[np.uint64]:
    """Random integers from 0 to ``bound - 1``: the upper 32 bits as a fraction of 1, times ``bound``."""
    return np.asarray(((raw >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))
