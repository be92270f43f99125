"""Operations of a piece of work."""

from __future__ import annotations

from torch import Tensor

from unimmad.operations import counting_operations
from unimmad.timing import Work


def counted(work: Work) -> tuple[Tensor, int]:
    """Do ``work`` once; what came of it, and its floating-point operations."""
    with counting_operations() as counter:
        outcome = work()
    return outcome, counter.get_total_flops()
