from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import model as benchmark
from benchmarks.model import Case, Cost, add_arguments, measure, table
from unimmad.config import load_recipe
from unimmad.model.unimmad import UniMMAD


def case(**changes) -> Case:
    values = {"recipe": "tiny", "device": "cpu", "precision": "fp32", "modalities": 1, "batch_size": 2, "repeats": 3}
    return Case(**{**values, **changes})


@pytest.fixture(scope="module")
def cost() -> Cost:
    return measure(case())


def test_parameters_are_those_of_the_recipes_model(cost):
    model = UniMMAD(load_recipe("tiny").model)
    teacher = sum(parameter.numel() for parameter in model.teacher.parameters())
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.trained_parameters == cost.parameters - teacher


def test_operations_grow_by_the_teachers_and_the_decoders_with_each_modality(cost):
    """What is done once a sample (encoder, compression) is not done again."""
    two = measure(case(modalities=2, repeats=1))
    model = UniMMAD(load_recipe("tiny").model).eval()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.teacher(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() < two.flops - cost.flops < cost.flops


def test_times_and_memory_are_possible(cost):
    assert 0 < cost.latency_median <= cost.latency_p95
    assert cost.images_per_second > 0
    assert cost.peak_bytes > 4 * cost.parameters


def test_bf16_is_measured_too():
    assert measure(case(precision="bf16", repeats=1)).images_per_second > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "tinny"}, "did you mean tiny"),
        ({"device": "cuda:99"}, "device cuda:99 can't be used"),
        ({"modalities": 5}, "--modalities 5: recipe tiny has 4 slots"),
    ],
)
def test_a_case_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        measure(case(**changes))


def test_a_number_below_one_is_refused():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ValueError, match="--batch-size 0 must be 1 or more"):
        benchmark.run(parser.parse_args(["--batch-size", "0"]))


def test_the_table_has_a_row_a_case_and_says_what_its_columns_are():
    cost = Cost(12_300_000, 10_000_000, 5_000_000_000, 20.0, 0.05, 0.07, 300 * 2**20)
    lines = table([(case(), cost), (case(precision="bf16"), cost)]).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines[:4]}) == 1
    for text in ("tiny", "fp32", "12.3 M", "5.00", "20.0", "50.0 ms", "70.0 ms", "300 MiB"):
        assert text in lines[2]
    assert "batch size 2" in lines[4]
