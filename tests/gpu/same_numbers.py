"""(c) Parity with the local form in fp32, on one device: one rank, and two that share it through gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import torch
from gpu.check import CheckError, Found, Setting
from launches import free_port
from parity.cases import BASE, Case, Layout
from parity.launch import SECONDS_A_CASE, WORKER, References
from parity.problem import make_shards
from parity.record import read_record


def same_numbers(layouts: Sequence[Layout]) -> Callable[[Setting], Found]:
    """The check of layouts of one world and ep_size; the problem is that of ``make parity``, at its small model."""

    def check(setting: Setting) -> Found:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        shards = setting.work / "parity-shards"
        if not shards.exists():
            make_shards(shards)
        cases = [Case(BASE, layout) for layout in layouts]
        folder = setting.work / "parity"
        folder.mkdir(exist_ok=True)
        _launch(setting, cases, [str(shards), str(folder), *(case.name for case in cases)])
        references = References(BASE, shards, setting.device)
        facts, problems = {}, []
        for case in cases:
            comparison = references.compare(read_record(folder / case.name))
            worst = max(worst.over_bound for worst in (*comparison.gradients.values(), *comparison.weights.values()))
            facts[str(case.layout)] = f"loss {comparison.loss:.1e}, worst tensor at {worst:.2f} of its bound"
            problems += [f"{case.layout}: {problem}" for problem in comparison.problems]
        if problems:
            raise CheckError("; ".join(problems))
        return Found(facts)

    return check


def _launch(setting: Setting, cases: Sequence[Case], argv: Sequence[str]) -> None:
    """Without a launcher: those of DeepSpeed and torch give each rank a GPU of its own."""
    world = cases[0].layout.world
    common = {"WORLD_SIZE": str(world), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    backend = ["--backend", "gloo"] if world > 1 else []
    hidden = {} if setting.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *argv, *backend], env={**os.environ, **common, **hidden, "RANK": str(rank)}
        )
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(SECONDS_A_CASE * len(cases)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise CheckError(f"ranks ended with {codes}; the log has their messages")
