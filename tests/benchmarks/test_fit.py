from __future__ import annotations

import argparse
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from benchmarks import fit
from benchmarks.fit import StepMemory, add_arguments, largest_batch, run, simulated_steps
from benchmarks.tensor_memory import StorageWatch
from unimmad.config import load_recipe
from unimmad.model.unimmad import UniMMAD

IMAGE_BYTES = 3 * 64 * 64 * 4
SLOT_BYTES = 8
ADAM_STEP_BYTES = 4


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--simulate", "--recipe", "tiny", *words])


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_step_reads_no_value_back_to_the_host_and_what_it_leaves_is_right_to_the_byte():
    """Fake tensors have no values: whatever reads one raises."""
    model = UniMMAD(load_recipe("tiny").model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.freeze_teacher()
    on_device = (model.input_embedding, model.encoder, model.compression, model.levels, model.folded_teacher.network)
    weights = sum(size(part.parameters()) + size(part.buffers()) for part in on_device)
    gradients_and_moments = 3 * size(trained) + ADAM_STEP_BYTES * len(trained)
    with simulated_steps(load_recipe("tiny"), "ours", modalities=2, precision="fp32") as memory_of:
        steps = {batch: memory_of(batch) for batch in (1, 3)}
    for batch, step in steps.items():
        assert step.lasting == weights + gradients_and_moments + 2 * batch * (IMAGE_BYTES + SLOT_BYTES)
    assert steps[1].lasting < steps[1].peak < steps[3].peak


def test_the_references_step_reads_no_value_back_either():
    with simulated_steps(load_recipe("tiny"), "reference", modalities=2, precision="fp32") as memory_of:
        one, two = memory_of(1), memory_of(2)
    assert one.lasting < one.peak < two.peak


def test_activation_checkpointing_takes_less_for_a_sample_and_leaves_the_same():
    found = {}
    for row in ("ours", "ours, activation checkpointing"):
        with simulated_steps(load_recipe("tiny"), row, modalities=2, precision="fp32") as memory_of:
            found[row] = memory_of(16), memory_of(32)
    kept, again = found.values()
    assert again[1].peak - again[0].peak < 0.8 * (kept[1].peak - kept[0].peak)
    assert again[0].lasting == kept[0].lasting


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


def test_the_table_says_what_is_counted_and_that_it_is_simulated(monkeypatch):
    @contextmanager
    def steps(recipe, form, modalities, precision, device):
        slope = {"ours": 1e7, "reference": 2e7, "ours, activation checkpointing": 5e6}[form]
        yield lambda batch: StepMemory(6e7 + slope * batch, 5e7)

    monkeypatch.setattr(fit, "simulated_steps", steps)
    lines = run(arguments("--gigabytes", "0.01", "0.16")).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:8]]
    assert [row[:2] for row in rows] == [
        ["reference", "0.01"],
        ["reference", "0.16"],
        ["ours", "0.01"],
        ["ours", "0.16"],
        ["ours, activation checkpointing", "0.01"],
        ["ours, activation checkpointing", "0.16"],
    ]
    assert [row[2:] for row in rows] == [
        ["0", "", "0.08", ""],
        ["5", "0.16", "0.18", "0.05"],
        ["0", "", "0.07", ""],
        ["10", "0.16", "0.17", "0.05"],
        ["0", "", "0.07", ""],
        ["20", "0.16", "0.17", "0.05"],
    ]
    assert "simulated" in lines[-3]
    assert "not the CUDA context" in lines[-2]


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
