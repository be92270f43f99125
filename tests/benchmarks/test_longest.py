from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import model as benchmark
from benchmarks.longest import LONGEST, Kernel, Profiled, longest_kernels, longest_table, measure_longest

CPU = torch.device("cpu")


def profiled(task: str = "evaluation") -> Profiled:
    return Profiled("tiny", "cpu", "fp32", modalities=2, task=task, batch=1)


def test_the_longest_come_first_with_what_each_took_in_one_run():
    matrix, vector = torch.randn(700, 700), torch.randn(70_000)

    def work() -> torch.Tensor:
        vector.sin()
        vector.sin()
        return matrix @ matrix

    kernels = longest_kernels(work, CPU)
    assert [(kernel.name, kernel.calls) for kernel in kernels[:2]] == [("aten::mm", 1), ("aten::sin", 2)]
    assert kernels == sorted(kernels, key=lambda kernel: -kernel.seconds)
    assert sum(kernel.share for kernel in kernels) == pytest.approx(1)
    assert kernels[0].share == pytest.approx(kernels[0].seconds / sum(kernel.seconds for kernel in kernels))


@pytest.mark.parametrize(("task", "backward"), [("evaluation", False), ("training step", True)])
def test_both_tasks_are_profiled(task, backward):
    kernels = measure_longest(profiled(task))
    assert len(kernels) == LONGEST
    assert any("convolution_backward" in kernel.name for kernel in kernels) is backward


def test_the_table_names_what_was_run():
    lines = longest_table(profiled(), [Kernel("a|b" * 60, calls=2, seconds=0.0125, share=0.25)]).splitlines()
    assert lines[0].startswith("evaluation, ours, fp32, 1 samples of 2 modalities, recipe tiny, cpu")
    assert lines[4].startswith("| a\\|ba")
    assert [cell.strip() for cell in lines[4].split(" | ")[1:]] == ["25.0%", "12.50", "2 |"]


def test_the_option_takes_the_defaults_of_the_comparison(monkeypatch):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    monkeypatch.setattr(benchmark, "longest_tables", lambda *words: f"profiled {words}")
    told = benchmark.run(parser.parse_args(["--profile", "--device", "cpu", "--train-batch", "3"]))
    assert told == "profiled ('paper', 'cpu', 'fp32', 2, 8, 3)"
