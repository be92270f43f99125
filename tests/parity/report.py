"""The parity, memory and resume tables, from real launches: what ``make parity`` prints.

python tests/parity/report.py [--short]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launches import free_port, run
from parity.cases import FULL, SHORT, Case
from parity.compare import KINDS, Comparison, Worst
from parity.launch import compared
from parity.memory_worker import Memory
from parity.problem import make_shards
from parity.resume import CONTINUED_AT, ResumeTable

MEMORY_WORKER = Path(__file__).with_name("memory_worker.py")
RESUME_BOUND = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one layout of each kind")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory(prefix="unimmad-parity-") as temporary:
        folder = Path(temporary)
        shards = folder / "shards"
        make_shards(shards)
        failures = print_parity(SHORT if short else FULL, shards, folder)
        print_memory(shards, folder)
        failures += print_resume(shards, folder, short)
    print(f"{failures} failures" if failures else "parity holds")
    return min(failures, 1)


def print_parity(cases: Sequence[Case], shards: Path, folder: Path) -> int:
    print("Largest relative difference to one process without DeepSpeed; in brackets over its bound where that is the")
    print("reference's own rounding (in parts, in other orders). Gradients of the first step, weights after five.\n")
    print(_row("problem", "layout", "loss", *(f"d {kind}" for kind in KINDS), "weights", "sent/routed"), flush=True)
    failures = 0
    for case, comparison in compared(cases, shards, folder):
        print(parity_row(case, comparison), flush=True)
        for problem in comparison.problems:
            failures += 1
            print(f"    FAILS: {problem}", flush=True)
    print()
    return failures


def parity_row(case: Case, comparison: Comparison) -> str:
    ratio = comparison.dispatched_over_routed
    worst_weight = max(comparison.weights.values(), key=lambda worst: worst.over_bound)
    return _row(
        case.problem.name,
        str(case.layout),
        f"{comparison.loss:.1e}",
        *(_worst(comparison.gradients[kind]) for kind in KINDS),
        _worst(worst_weight),
        "nothing" if ratio is None else f"{ratio:.4f}",
    )


def print_memory(shards: Path, folder: Path) -> None:
    print("Memory of the rank that holds most, banks = ep_size = ranks, ZeRO 0, Adam (MiB)\n")
    print(f"{'ranks':>5} {'banks':>5} {'banks state':>12} {'all state':>10} {'peak resident':>14}")
    for ranks in (1, 2, 4):
        memory = measured(ranks, shards, folder)
        mib = [f"{value / 2**20:.1f}" for value in (memory.bank_state, memory.state, memory.peak_resident)]
        print(f"{memory.ranks:>5} {memory.banks:>5} {mib[0]:>12} {mib[1]:>10} {mib[2]:>14}", flush=True)
    print()


def measured(ranks: int, shards: Path, folder: Path) -> Memory:
    output = folder / f"memory{ranks}.json"
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    done = run([*launcher, "--num_accelerators", str(ranks), str(MEMORY_WORKER), str(shards), str(output)], folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return Memory(**json.loads(output.read_text()))


def print_resume(shards: Path, folder: Path, short: bool) -> int:
    resume = folder / "resume"
    resume.mkdir()
    table = ResumeTable(shards, resume)
    print("Saved at world 2, ep 2, ZeRO 1 after 3 steps of Adam, continued to step 6\n")
    print(f"{'continued at':<24} {'state kept':>10} {'rates equal':>11} {'loss curve':>10} {'bit for bit':>11}")
    failures = 0
    for row in table.rows(CONTINUED_AT[:2] if short else CONTINUED_AT):
        good = row.resaved_equal and row.rates_equal and row.loss <= RESUME_BOUND
        good = good and (row.bit_for_bit or row.layout != CONTINUED_AT[0])
        failures += not good
        argv = [_yes(row.resaved_equal), _yes(row.rates_equal), f"{row.loss:.1e}", _yes(row.bit_for_bit)]
        print(f"{row.layout!s:<24} {argv[0]:>10} {argv[1]:>11} {argv[2]:>10} {argv[3]:>11}", flush=True)
    print()
    return failures


def _row(problem: str, layout: str, *cells: str) -> str:
    return f"{problem:<24} {layout:<22} " + " ".join(f"{cell:>14}" for cell in cells)


def _worst(worst: Worst) -> str:
    relaxed = f" [{worst.over_bound:.2f}]" if worst.relaxed else ""
    return f"{worst.difference:.1e}{relaxed}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(status)
