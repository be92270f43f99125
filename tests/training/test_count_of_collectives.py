"""How many collectives a micro-step takes: what docs/parallel.md says, counted in a real launch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launches import free_port, run

WORKER = Path(__file__).with_name("collectives_worker.py")


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory) -> list[dict[str, dict[str, int]]]:
    """By rank, then ep_size."""
    folder = tmp_path_factory.mktemp("collectives")
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    done = run([*launcher, "--num_accelerators", "2", str(WORKER), str(folder), "--recipe", "tiny"], folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("ep_size", [1, 2])
def test_a_micro_step_takes_two_a_batchnorm_one_for_the_loss_and_four_a_gate_that_sends(of_ranks, ep_size):
    for of_rank in of_ranks:
        counts = of_rank[str(ep_size)]
        batchnorms, gates = counts.pop("batchnorms"), counts.pop("gates")
        deepspeeds = [name for name in counts if name.startswith("DeepSpeed ")]
        assert deepspeeds
        expected = {
            "collectives forward all_gather": batchnorms,
            "batchnorm backward all_reduce": batchnorms,
            "world forward all_reduce": 1,
        }
        if ep_size > 1:
            # All gates together say how much comes, then ids and scores; maps go and come home for each.
            expected |= {
                "dispatch forward all_to_all": 1,
                "collectives forward all_to_all": 1 + 2 * gates,
                "collectives backward all_to_all": 2 * gates + 1,
            }
        assert {name: count for name, count in counts.items() if name not in deepspeeds} == expected
