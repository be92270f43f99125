from __future__ import annotations

import argparse

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from unimmad.assembly import empty_model
from unimmad.benchmarks.fake_memory import StorageWatch
from unimmad.benchmarks.fit import StepMemory, add_arguments, largest_batch, run, simulated_steps
from unimmad.config import load_recipe

IMAGE_BYTES = 3 * 64 * 64 * 4
SLOT_BYTES = 8
ADAM_STEP_BYTES = 4


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--simulate", "--recipe", "tiny", *words])


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_what_a_step_leaves_behind_is_right_to_the_byte():
    model = empty_model(load_recipe("tiny").model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = size(model.parameters()) + size(model.buffers())
    gradients_and_moments = 3 * size(trained) + ADAM_STEP_BYTES * len(trained)
    with simulated_steps(load_recipe("tiny"), "ours", modalities=2, precision="fp32") as memory_of:
        for batch in (1, 3):
            expected = weights + gradients_and_moments + 2 * batch * (IMAGE_BYTES + SLOT_BYTES)
            assert memory_of(batch).lasting == expected


@pytest.mark.parametrize("form", ["ours", "reference"])
def test_a_step_reads_no_value_back_to_the_host_and_its_peak_grows_with_the_batch(form):
    """Fake tensors have no values: whatever reads one raises."""
    with simulated_steps(load_recipe("tiny"), form, modalities=2, precision="fp32") as memory_of:
        one, four = memory_of(1), memory_of(4)
    assert one.lasting < one.peak < four.peak


def test_a_value_read_back_would_be_told():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.randn(3).sum().item()


def test_storages_are_counted_once_while_they_live():
    with FakeTensorMode(), StorageWatch() as watch:
        first = torch.ones(100)
        view = first.view(10, 10)[2:]
        second = view + 1
        assert watch.current == 4 * (100 + 80)
        del first, second
        assert watch.current == 4 * 100
        del view
    assert watch.current == 0
    assert watch.peak == 4 * (100 + 80)


def memory_of_steps(peak_of):
    tried = []

    def memory_of(batch: int) -> StepMemory:
        tried.append(batch)
        return StepMemory(peak_of(batch), 0)

    return memory_of, tried


@pytest.mark.parametrize(
    ("peak_of", "largest"),
    [
        (lambda batch: 10 + 3 * batch, 30),
        (lambda batch: 10 + batch**2, 9),
        (lambda batch: 10 + 3 * batch if batch < 20 else float("inf"), 19),
        (lambda batch: 101.0, 0),
        (lambda batch: 100.0 * batch, 1),
    ],
)
def test_the_largest_batch_was_tried_and_so_was_one_more(peak_of, largest):
    memory_of, tried = memory_of_steps(peak_of)
    assert largest_batch(memory_of, 100) == largest
    assert {largest, largest + 1} - {0} <= set(tried)


def test_what_is_proportional_takes_few_tries():
    memory_of, tried = memory_of_steps(lambda batch: 3.0 + batch)
    assert largest_batch(memory_of, 1000) == 997
    assert len(set(tried)) <= 14


def test_the_table_says_what_is_counted_and_that_it_is_simulated():
    lines = run(arguments("--gigabytes", "0.01", "0.16")).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:6]]
    assert [row[:2] for row in rows] == [
        ["reference", "0.01"],
        ["reference", "0.16"],
        ["ours", "0.01"],
        ["ours", "0.16"],
    ]
    batches = [int(row[2]) for row in rows]
    assert batches[0] == batches[2] == 0
    assert 0 < batches[1] < batches[3]
    assert "simulated" in lines[-2]
    assert "not the CUDA context" in lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modalities", "0"], "1 or more --modalities"),
        (["--gigabytes", "0"], "--gigabytes above 0"),
        (["--modalities", "5"], "recipe tiny has 4 slots"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        run(arguments(*words))
