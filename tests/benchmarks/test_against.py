from __future__ import annotations

import argparse
from functools import partialmethod

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import model as benchmark
from benchmarks.against import measure_peaks, measure_task
from benchmarks.contest import TASKS, Comparison, Contestant, Peaks, Run, TaskResult, contestants
from benchmarks.contest_table import report
from benchmarks.decoders import decoder_model
from benchmarks.growth import Growth, Size, growth_table, measure_growth
from benchmarks.workbench import Workbench
from unimmad.config import load_recipe
from unimmad.model.backends import convolution
from unimmad.profiling import machine
from unimmad.profiling.flops import counted
from unimmad.profiling.machine import matrix_product
from unimmad.profiling.timing import interleaved_seconds

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch):
    monkeypatch.setitem(machine.MATRIX_SIZE, "cpu", 64)


def comparison(**changes) -> Comparison:
    values = {"recipe": "tiny", "device": "cpu", "precision": "fp32", "modalities": 2, "batch_size": 3}
    return Comparison(**{**values, "train_batch": 2, "repeats": 1, **changes})


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args(list(words))


@pytest.mark.parametrize("task", TASKS)
def test_both_forms_do_the_same_and_ours_with_fewer_operations(task):
    result = measure_task(comparison(), task)
    reference, *ours = result.runs.items()
    assert reference[0].form == "reference"
    assert all(contestant.form.startswith("ours") for contestant, _ in ours)
    assert result.difference <= 1e-4 * result.largest
    assert 0.01 < result.largest < 4  # a map joins 2 modalities x 3 levels of at most 1 each, but for negative cosines
    for contestant, run in ours:
        assert run.flops / contestant.batch < reference[1].flops / reference[0].batch
    for run in result.runs.values():
        assert run.share == pytest.approx(run.flops / run.seconds / result.rates["fp32"])


def test_bf16_is_ours_only_and_held_against_the_rate_in_bf16():
    result = measure_task(comparison(precision="bf16"), TASKS[2])
    reference, ours = result.runs.values()
    assert reference.share == pytest.approx(reference.flops / reference.seconds / result.rates["fp32"])
    assert ours.share == pytest.approx(ours.flops / ours.seconds / result.rates["bf16"])
    assert 0 < result.difference < 0.2


@pytest.mark.parametrize("task", ["evaluation", "training step", "C-MoE, forward and backward"])
def test_ours_needs_less_memory_for_its_tensors_and_the_same_each_time(task):
    reference, ours, *_ = contestants(comparison(), task)
    of_reference, of_ours, again = (measure_peaks(comparison(), each) for each in (reference, ours, ours))
    weights = sum(weight.nbytes for weight in decoder_model(load_recipe("tiny").model, CPU).levels.parameters())
    assert weights < of_ours.tensors == again.tensors < of_reference.tensors
    assert of_ours.process > of_ours.tensors


def test_evaluation_is_measured_one_by_one_and_in_a_batch():
    assert [(one.form, one.batch) for one in contestants(comparison(), "evaluation")] == [
        ("reference", 1),
        ("ours", 1),
        ("ours", 3),
        ("ours, no kernels kept", 1),
    ]
    assert len(contestants(comparison(batch_size=1), "evaluation")) == 3


def test_variants_of_ours_compete_in_evaluation_and_training():
    case = comparison(variants=("channels_last", "compile"))
    added = {
        task: [(one.form, one.batch) for one in contestants(case, task) if one not in contestants(comparison(), task)]
        for task in TASKS
    }
    assert added == {
        "evaluation": [("ours, channels last", 3), ("ours, compiled", 3)],
        "training step": [("ours, channels last", 2), ("ours, compiled", 2)],
        "C-MoE, inference": [],
        "C-MoE, forward and backward": [],
    }


@pytest.mark.parametrize("task", ["evaluation", "training step"])
def test_variants_give_the_same(task, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    result = measure_task(comparison(variants=("channels_last", "compile")), task)
    assert {contestant.form for contestant in result.runs} >= {"ours, channels last", "ours, compiled"}
    assert 0 < result.difference <= 1e-4 * result.largest


def test_a_variant_computes_in_its_own_way_and_ours_does_not():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=1)
    for form, wanted in (("ours, channels last", torch.channels_last), ("ours", torch.contiguous_format)):
        assert bench._for_training(form).memory_format is bench._for_evaluation(form).memory_format is wanted
        assert bench._for_training(form).folded_teacher is not None
    for form, wanted in (("ours, compiled", True), ("ours", False)):
        networks = bench._for_training(form).folded_teacher.network, bench._for_evaluation(form).encoder
        assert [network._compiled_call_impl is not None for network in networks] == [wanted, wanted]


def test_counting_leaves_compiled_networks_compiled(monkeypatch):
    """A function that PyTorch meets inside a counter would never be compiled again."""
    ran = []

    def backend(graph, _):
        return lambda *given: ran.append(1) or graph.forward(*given)

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=1)
    step, plain = bench.training_step("ours, compiled", 1), bench.training_step("ours", 1)
    step()
    assert ran
    ran.clear()
    assert counted(step)[1] == counted(plain)[1]
    assert not ran
    step()
    assert ran


def test_without_kept_kernels_the_maps_are_the_same_for_more_operations():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=2)
    bench.settle_batchnorm()
    kept, composed = bench.scoring("ours", 1), bench.scoring("ours, no kernels kept", 1)
    kept()
    (maps, operations), (maps_composed, operations_composed) = counted(kept), counted(composed)
    torch.testing.assert_close(maps_composed, maps, rtol=1e-4, atol=1e-5)
    assert operations_composed > operations


def test_gradients_of_a_grouped_convolution_cost_what_the_convolution_does():
    x, kernel = torch.randn(2, 12, 7, 7, requires_grad=True), torch.randn(8, 3, 3, 3, requires_grad=True)
    forward = 2 * 2 * 49 * kernel.numel()

    def there_and_back() -> torch.Tensor:
        output = F.conv2d(x, kernel, padding=1, groups=4)
        output.sum().backward()
        return output

    assert counted(there_and_back)[1] == 3 * forward


def test_a_transformed_convolution_counts_as_the_plain_one(monkeypatch):
    x, kernel, bias = torch.randn(2, 3, 6, 7), torch.randn(8, 3, 3, 3), torch.randn(8)
    monkeypatch.setattr(convolution, "transforms_pay", lambda *_: torch.backends.nnpack.is_available())
    with torch.no_grad():
        flops = counted(lambda: convolution.fast_convolution(x, kernel, bias))[1]
    assert flops == 2 * 2 * 6 * 7 * kernel.numel()


def test_the_matrix_product_counts_its_operations():
    work, flops = matrix_product(torch.float32, CPU)
    assert counted(work)[1] == flops


def test_works_take_turns():
    order = []
    works = {name: lambda name=name: order.append(name) or torch.zeros(1) for name in ("a", "b")}
    seconds = interleaved_seconds(works, 3, CPU)
    assert order == ["a", "b"] * 3
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_a_smaller_batch_is_the_beginning_of_a_larger_one():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=2)
    one, two = bench.inputs(1), bench.inputs(2)
    assert torch.equal(two.images_TCHW[:2], one.images_TCHW)
    assert two.tokens_per_sample == (2, 2)
    assert two.slot_of_token_T.tolist() == [0, 1, 0, 1]


def test_running_statistics_are_those_of_the_images():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=2)
    bench.settle_batchnorm()
    layers = [layer for layer in bench.model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert layers
    assert not any(torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean)) for layer in layers)
    assert {layer.momentum for layer in layers} == {0.1}


def test_a_training_step_leaves_the_weights_alone():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=1)
    before = [parameter.clone() for parameter in bench.model.parameters()]
    losses = [bench.training_step(form, 2)() for form in ("ours", "reference", "ours")]
    assert all(map(torch.equal, before, bench.model.parameters()))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_ours_takes_the_fused_adam_of_training_and_the_reference_the_plain_one():
    bench = Workbench(load_recipe("tiny"), CPU, "fp32", modalities=1)
    adams = {form: bench._optimizer(form) for form in ("ours", "reference")}
    assert adams["ours"] is bench._optimizer("ours")
    assert [adams[form].defaults["fused"] for form in ("ours", "reference")] == [True, None]


def test_of_a_decoder_model_only_the_decoders_take_memory():
    model = decoder_model(load_recipe("tiny").model, CPU, [1])
    assert len(model.levels) == 1
    real = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.is_meta}
    assert real == {"levels"}


def test_growth_is_shown_beside_the_first_row():
    case = Growth("tiny", "cpu", "fp32", "banks", (Size(2, 8, 1), Size(2, 8, 4)), repeats=1)
    found = measure_growth(case)
    assert all(seconds > 0 for times in found.values() for seconds in times)
    lines = growth_table(case, {case.sizes[0]: (0.002, 0.004), case.sizes[1]: (0.003, 0.005)}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]]
    assert cells == [["1", "2.0", "1.00", "4.0", "1.00"], ["4", "3.0", "1.50", "5.0", "1.25"]]
    assert lines[4] == "2 tokens, 8 leaders"


def test_the_report_has_ratios_shares_and_differences():
    first, second = Contestant("evaluation", "reference", 1), Contestant("evaluation", "ours", 4)
    runs = {first: Run(2.0, 300_000_000_000, 0.75), second: Run(4.0, 800_000_000_000, 0.9)}
    result = TaskResult(runs, difference=2e-6, largest=1.5, rates={"fp32": 2e11})
    peaks = {first: Peaks(3 * 2**30, 2**32), second: Peaks(2**29, 2**30)}
    lines = report(comparison(), {"evaluation": result}, peaks).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        *("evaluation", "ours", "4", "1", "1", "2.00", "200.0", "90%", "512 MiB", "1024 MiB"),
    ]
    assert "evaluation: 2.0e-06 (values up to 1.5)" in lines[5]
    assert "fp32 200 GFLOP/s" in lines[-2]


def test_options_become_cases(monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "compare", lambda case: seen.append(case) or "compared")
    monkeypatch.setattr(benchmark, "growth_tables", lambda *words: f"grown {words}")
    told = benchmark.run(options("--against", "reference", "--growth", "--device", "cpu"))
    assert seen == [Comparison("paper", "cpu", "fp32", modalities=2, batch_size=8, train_batch=2, repeats=5)]
    assert told == "compared\n\ngrown ('paper', 'cpu', 'fp32', 5)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "reference", "--train-batch", "0"], "--train-batch 0 must be 1 or more"),
        (["--train-batch", "2"], "--train-batch is for --against"),
        (["--variants", "compile"], "--variants is for --against"),
        (["--against", "reference", "--recipe", "tiny", "--modalities", "5", "--device", "cpu"], "has 4 slots"),
        (["--against", "reference", "--recipe", "tinny", "--device", "cpu"], "did you mean tiny"),
        (["--growth", "--device", "cuda:99"], "device cuda:99 can't be used"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(words, message):
    with pytest.raises(ValueError, match=message):
        benchmark.run(options(*words))
