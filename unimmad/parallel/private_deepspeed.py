"""All that is used of DeepSpeed though it is not part of its public API.

A new version may move any of it; ``tests/parallel/test_private_deepspeed.py`` has a test for each that says what is
then broken. The public functions of ``deepspeed.utils`` for optimizer state do not do: they bring the whole tensor to
every rank, know the first group of parameters alone (experts are another), nothing of it before a first step, and never
how many steps Adam took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """What this rank's ZeRO partition holds of a parameter."""

    partition: Tensor
    """float32, flat: what torch's optimizer steps in the parameters' place, one for each group of parameters."""
    start: int
    """Of the fragment, in elements of the partition."""
    start_in_parameter: int
    """Of the fragment, in elements of the flattened parameter."""
    numel: int


def zero_fragment(zero_optimizer: Any, parameter: nn.Parameter) -> Fragment | None:
    """Where ZeRO 1 or 2 keeps this rank's part of ``parameter``; None where all of it is other ranks'."""
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    partition = zero_optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    inside, address = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Fragment(partition, address.start, inside.start, address.numel)


def without_shared_memory_collectives() -> None:
    """DeepSpeed would compile them for minutes on a processor, with no way back when no compiler is there."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
