from __future__ import annotations

from importlib import import_module
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import link_hp_params
from torch import nn

from unimmad.parallel.private_deepspeed import without_shared_memory_collectives, zero_fragment


class Zero:
    """As much of ZeRO's optimizer as is asked: two groups of parameters, and the second's partition of one rank."""

    def __init__(self, start: int, numel: int) -> None:
        self.parameters = [nn.Parameter(torch.arange(6.0).reshape(2, 3)), nn.Parameter(torch.arange(6.0, 10.0))]
        self.partition = torch.cat([parameter.detach().flatten() for parameter in self.parameters])[start:][:numel]
        self.single_partition_of_fp32_groups = [torch.empty(0), self.partition]
        link_hp_params(
            self.parameters,
            self.partition,
            {},
            {},
            False,
            1,
            partition_start=start,
            partition_size=numel,
            dp_group=None,
        )


def test_zero_says_where_a_parameters_part_lies():
    """That ZeRO itself links its parameters so is seen in a real step (tests/training/test_micro_step.py)."""
    broken = "DeepSpeed keeps ZeRO's fragments otherwise: checkpoints would hold other tensors than they say"
    ends = Zero(4, 5)
    cut, rest = (zero_fragment(ends, parameter) for parameter in ends.parameters)
    for found, wanted in ((cut, (0, 4, 2)), (rest, (2, 0, 3))):
        assert found is not None, broken
        assert found.partition is ends.partition, broken
        assert (found.start, found.start_in_parameter, found.numel) == wanted, broken
    of_others = Zero(6, 4)
    assert zero_fragment(of_others, of_others.parameters[0]) is None, broken


def test_deepspeed_compiles_no_collectives():
    without_shared_memory_collectives()
    broken = "DeepSpeed's switch moved: every first start on a processor compiles for minutes, and needs a compiler"
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    assert builder is None or builder.NAME == "deepspeed_shm_comm", broken
    with patch.object(type(builder), "load", side_effect=AssertionError(broken)):
        assert import_module("deepspeed.comm.torch").build_shm_op() is None, broken
