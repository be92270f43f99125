"""The command ``unimmad compare``: what it says and writes, with cells that are made up; and some that are not."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from comparing.made_results import result
from hand_made import hand_made_shards
from launches import ROOT, environment

from unimmad.cli import compare
from unimmad.comparing.cells import Cell
from unimmad.comparing.results import NAME, write_result
from unimmad.comparing.running import FAILURE, CellError, Running, cell_fingerprint
from unimmad.data.index import load_index
from unimmad.metrics.metrics import METRIC_KEYS

VALUES = {"memory_bank": 0.5, "rd": 0.75, "unimmad": 0.25}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """One class."""
    return hand_made_shards(tmp_path_factory.mktemp("data") / "shards", ["solids"])


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Cells are finished at once; which, in their order. Those of uniad fail."""
    names: list[str] = []

    def run_cell(cell: Cell, running: Running):
        names.append(f"{cell.method}/{cell.seed}")
        if cell.method == "uniad":
            cell.folder.mkdir(parents=True, exist_ok=True)
            (cell.folder / FAILURE).write_text("train ended with status 2: it can't\n")
            raise CellError("train ended with status 2: it can't")
        made = result(cell.method, {"solids/nut": VALUES[cell.method] + cell.seed / 100}, cell.seed)
        write_result(cell.folder, made, cell_fingerprint(cell, running))
        return made

    monkeypatch.setattr(compare, "run_cell", run_cell)
    return names


@pytest.fixture
def typed(shards, tmp_path, monkeypatch, capsys):
    """The command with some words more; its exit code, output and errors."""
    before = {number: signal.getsignal(number) for number in compare.STOP_SIGNALS}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unimmad compare"])

    def call(*words: str) -> tuple[int, str, str]:
        base = ["--recipe", "tiny", "--data", str(shards), "--output-dir", "out"]
        try:
            code = compare.main([*base, *words])
        except SystemExit as stop:
            code = int(str(stop.code))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def means(path: Path = Path("out/comparison.csv")) -> dict[tuple[str, str], str]:
    with path.open(newline="") as file:
        return {(row["class"], row["method"]): row["mean"] for row in csv.DictReader(file) if row["metric"] == "AUPRO"}


def test_every_pair_is_run_and_one_table_is_written(typed, ran):
    code, out, err = typed("--methods", "memory_bank,rd", "--seeds", "0,1")
    assert code == 0
    assert ran == ["memory_bank/0", "memory_bank/1", "rd/0", "rd/1"]
    assert "== rd, seed 1 (4 of 4)" in err
    assert means() == {("solids/nut", "memory_bank"): "0.505", ("solids/nut", "rd"): "0.755"}
    for name in ("comparison.md", "comparison.tex", "comparison.csv", "cost.csv", "comparison.html"):
        assert Path("out", name).is_file()
        assert f"out/{name}\n" in out
    assert "^" in out
    page = Path("out/comparison.html").read_text()
    assert "root of the sum of squares" in page
    assert Path("out/quality_and_cost.png").is_file()


def test_what_is_finished_is_not_run_again(typed, ran):
    typed("--methods", "memory_bank,rd")
    first = Path("out/comparison.csv").read_bytes()
    ran.clear()
    code, _, _ = typed("--methods", "memory_bank,rd,unimmad")
    assert (code, ran) == (0, ["unimmad/0"])
    ran.clear()
    assert typed("--methods", "memory_bank,rd")[0] == 0
    assert (ran, Path("out/comparison.csv").read_bytes()) == ([], first)


def test_a_failed_cell_leaves_the_others_and_is_named_with_its_reason(typed, ran):
    code, out, err = typed("--methods", "uniad,rd", "--set", "uniad:model.neighbour_window=3")
    assert code == 1
    assert ran == ["uniad/0", "rd/0"]
    assert "unimmad compare: uniad, seed 0: train ended with status 2: it can't\n" in err
    assert "no result of uniad, seed 0: train ended with status 2: it can't" in out
    assert means() == {("solids/nut", "rd"): "0.75"}
    for name in ("comparison.md", "comparison.html"):
        assert "no result of uniad, seed 0" in Path("out", name).read_text()


def test_a_table_of_what_there_is_runs_nothing(typed, ran):
    typed("--methods", "rd")
    ran.clear()
    words = ("--methods", "rd,unimmad,uniad", "--set", "uniad:model.neighbour_window=3", "--table")
    code, out, _ = typed(*words)
    assert (code, ran) == (0, [])
    assert "no result of unimmad, seed 0: not finished yet" in out


def test_a_table_without_methods_is_of_all_cells_that_lie_there(typed, ran):
    typed("--methods", "rd,memory_bank", "--seeds", "0,1", "--set", "rd:training.learning_rate=0.5")
    Path("out/memory_bank/seed_1", NAME).unlink()
    Path("out/uniad/seed_0").mkdir(parents=True)
    Path("out/uniad/seed_0", FAILURE).write_text("train ended with status 2: it can't\n")
    ran.clear()
    code, out, _ = typed("--table")
    assert (code, ran) == (0, [])
    assert means() == {("solids/nut", "memory_bank"): "0.5", ("solids/nut", "rd"): "0.755"}
    assert "no result of memory_bank, seed 1: not finished yet" in out
    assert "no result of uniad, seed 0: train ended with status 2: it can't" in " ".join(out.split())


def test_a_table_of_results_that_were_kept_alone_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unimmad compare"])
    write_result(Path("kept/mine/seed_3"), result("mine", {"solids/nut": 0.5}, 3), "of another day")
    assert compare.main(["--table", "--output-dir", "kept"]) == 0
    assert means(Path("kept/comparison.csv")) == {("solids/nut", "mine"): "0.5"}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert compare.main(["--table", "--output-dir", "empty"]) == 2
    assert signal.getsignal(signal.SIGTERM) != compare._stop
    said = "unimmad compare: --table: there is no METHOD/seed_N/result.json in empty; name another --output-dir\n"
    assert capsys.readouterr().err == said


def test_without_any_result_there_is_no_table(typed, ran):
    code, out, err = typed("--methods", "rd", "--table")
    assert (code, out) == (1, "")
    assert err == "unimmad compare: no cell is finished: rd, seed 0: not finished yet\n"
    assert not Path("out/comparison.csv").exists()


def test_one_cell_alone_as_a_job_of_an_array_runs_it(typed, ran):
    code, out, _ = typed("--methods", "memory_bank,rd", "--seeds", "0,1", "--only", "rd/1")
    assert (code, out, ran) == (0, "", ["rd/1"])
    assert not Path("out/comparison.csv").exists()
    assert typed("--methods", "memory_bank,rd", "--only", "rd/7")[0] == 2
    assert typed("--methods", "uniad", "--set", "uniad:model.neighbour_window=3", "--only", "uniad/0")[0] == 1


def test_results_of_elsewhere_stand_beside_ours(typed, ran, tmp_path):
    write_result(tmp_path / "theirs" / "deep", result("borrowed", {"solids/nut": 0.875}), "of another machine")
    assert typed("--methods", "rd", "--results", "theirs")[0] == 0
    assert means()["solids/nut", "borrowed"] == "0.875"


def test_a_hostile_result_of_elsewhere_stays_text(typed, ran, tmp_path):
    name = "=1+1 <script>alert(1)</script> $x"
    write_result(tmp_path / "theirs", result(name, {"solids/nut": 0.875}), "f")
    assert typed("--methods", "rd", "--results", "theirs")[0] == 0
    assert "<script>" not in Path("out/comparison.html").read_text()
    assert ("solids/nut", "'" + name) in means()


@pytest.mark.parametrize("mode", [(), ("--slurm",)])
def test_a_result_of_elsewhere_of_a_cell_of_ours_is_told_before_anything_runs(typed, ran, tmp_path, mode):
    write_result(tmp_path / "theirs" / "deep", result("rd", {"solids/nut": 0.875}, 1), "of another machine")
    code, out, err = typed("--methods", "memory_bank,rd", "--seeds", "0,1", "--results", "theirs", *mode)
    assert (code, out, ran, err.count("\n")) == (2, "", [], 1)
    assert "out/rd/seed_1/result.json and theirs/deep/result.json are both of rd, seed 1" in err
    assert typed("--methods", "memory_bank,rd", "--seeds", "0", "--results", "theirs")[0] == 0


def test_two_results_of_elsewhere_of_one_seed_are_told_before_anything_runs(typed, ran, tmp_path):
    for folder in ("theirs", "hers"):
        write_result(tmp_path / folder, result("borrowed", {"solids/nut": 0.875}), folder)
    code, _, err = typed("--methods", "rd", "--results", "theirs", "--results", "hers")
    assert (code, ran) == (2, [])
    assert "theirs/result.json and hers/result.json are both of borrowed, seed 0" in err


def test_a_table_takes_a_result_of_elsewhere_for_a_cell_that_is_not_finished(typed, ran, tmp_path):
    write_result(tmp_path / "theirs", result("rd", {"solids/nut": 0.875}), "of another machine")
    assert typed("--methods", "rd", "--table", "--results", "theirs")[0] == 0
    assert means()["solids/nut", "rd"] == "0.875"


def test_results_that_are_ours_already_count_once(typed, ran, tmp_path):
    assert typed("--methods", "rd")[0] == 0
    assert typed("--methods", "rd", "--results", "out", "--results", str(tmp_path / "out"))[0] == 0
    assert means()["solids/nut", "rd"] == "0.75"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "rd", "--device", "cuda:99"], "device cuda:99 can't be used here"),
        (["--methods", "rd", "--device", "cuda:99", "--only", "rd/0"], "device cuda:99 can't be used here"),
        (["--methods", "rd", "--device", "gpu"], "device gpu can't be used here"),
        (["--methods", "rdd"], "rdd, with what recipe tiny says for all: 'rdd' is neither a method"),
        (["--methods", "rd", "--seeds", "0,x"], "--seeds 0,x: give whole numbers, such as 0,1,2"),
        (["--methods", "rd", "--seeds", "--5"], "--seeds"),
        (["--methods", "rd", "--minutes", "0"], "--minutes 0 must be a number above 0"),
        (["--methods", "rd", "--minutes", "nan"], "--minutes nan must be a number above 0"),
        (["--methods", "rd", "--minutes", "inf"], "--minutes inf must be a number above 0"),
        (["--methods", "rd", "--launcher", "torchrun 'x"], "--launcher torchrun 'x: No closing quotation"),
        (["--methods", "rd", "--published"], "no published row for solids; there are rows for mvtec_ad"),
        (["--methods", "rd", "--results", "nowhere"], "--results nowhere: there is no result.json in it"),
        (["--methods", "rd", "--data", "nowhere"], "nowhere"),
        (["--methods", "rd", "--recipe", "nowhere"], "no recipe 'nowhere'"),
        (["--methods", "rd", "--", "--partition", "gpu"], "options of unimmad launch follow -- with --slurm alone"),
        (["--methods", "rd", "--table", "--only", "rd/0"], "not allowed with"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(typed, ran, words, said):
    code, out, err = typed(*words)
    assert (code, out, ran) == (2, "", [])
    assert said in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 or err.startswith("usage:")


def test_a_folder_of_other_settings_is_told_before_anything_runs(typed, ran):
    typed("--methods", "rd")
    ran.clear()
    code, _, err = typed("--methods", "memory_bank,rd", "--set", "rd:training.learning_rate=0.5")
    assert (code, ran) == (2, [])
    assert "unimmad compare: out/rd/seed_0 holds what other settings, data or --minutes came to" in err


def test_a_damaged_result_is_told_before_anything_runs(typed, ran):
    typed("--methods", "rd")
    Path("out/rd/seed_0", NAME).write_text('{"format": 1')
    ran.clear()
    code, _, err = typed("--methods", "memory_bank,rd")
    assert (code, ran, err.count("\n")) == (2, [], 1)
    assert "result.json" in err


def test_pictures_are_left_out_where_runs_are_gone(typed, ran):
    """Of results that were kept alone, such as those of other days."""
    assert typed("--methods", "rd,unimmad")[0] == 0
    assert not Path("out/disputed").exists()
    assert "Where methods disagree" not in Path("out/comparison.html").read_text()


def test_a_url_with_a_password_is_not_on_the_page(typed):
    from unimmad.data.location import RemoteFolder

    running = Running(data=(RemoteFolder("https://me:secret@host/set?key=abc"),))
    header = compare._header([], running)
    assert "secret" not in header["data"]


# ---- the commands themselves


def command(shards: Path, *words: str) -> list[str]:
    base = ["--recipe", "tiny", "--data", str(shards), "--output-dir", "out"]
    return [sys.executable, str(ROOT / "tools" / "compare.py"), *base, *words]


def ends(words: Sequence[str], folder: Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    ours = environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=ours, capture_output=True, text=True, timeout=seconds, check=False)


def test_two_methods_are_trained_scored_measured_and_drawn(shards, tmp_path):
    done = ends(command(shards, "--methods", "memory_bank,rd"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = means(tmp_path / "out" / "comparison.csv")
    classes = load_index(shards).classes("test")
    assert set(found) >= {(name, method) for name in classes for method in ("memory_bank", "rd")}
    cost = {row["method"]: row for row in csv.DictReader((tmp_path / "out" / "cost.csv").open(newline=""))}
    assert float(cost["rd"]["trained"]) > 1
    assert (float(cost["memory_bank"]["trained"]), cost["memory_bank"]["steps"]) == (0, "0")
    assert float(cost["memory_bank"]["GFLOP"]) > 0
    assert float(cost["rd"]["peak GiB"]) > 0.1
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "Where methods disagree" in page
    assert 'src="disputed/01.png"' in page
    assert (tmp_path / "out" / "disputed" / "01.png").is_file()
    for metric in METRIC_KEYS:
        assert metric in done.stdout or metric.partition("-")[2] in done.stdout


LONG = ("--methods", "memory_bank,rd,unimmad", "--set", "training.epochs=6", "--set", "training.checkpoint_every=1")


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stopped(words: Sequence[str], folder: Path, holds: Callable[[], bool], number: signal.Signals) -> int:
    ours = environment() | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=folder, env=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        until(holds, child)
        child.send_signal(number)
        return child.wait(600)


def numbers(out: Path) -> bytes:
    return (out / "comparison.csv").read_bytes()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_twice_and_gone_on_with_the_table_is_that_of_an_undisturbed_run(shards, tmp_path):
    plain, disturbed = tmp_path / "plain", tmp_path / "disturbed"
    plain.mkdir()
    disturbed.mkdir()
    words = command(shards, *LONG)
    done = ends(words, plain, 1200)
    assert done.returncode == 0, done.stderr[-3000:]

    out = disturbed / "out"
    steps = out / "rd" / "seed_0" / "run" / "checkpoints"
    in_training = stopped(words, disturbed, lambda: len(list(steps.glob("step_*"))) > 0, signal.SIGTERM)
    assert in_training == 128 + signal.SIGTERM
    assert not (out / "rd" / "seed_0" / NAME).exists()
    scored = out / "unimmad" / "seed_0" / "evaluation"
    assert stopped(words, disturbed, scored.is_dir, signal.SIGKILL) == -signal.SIGKILL
    assert (out / "rd" / "seed_0" / NAME).exists()
    assert not (out / "unimmad" / "seed_0" / NAME).exists()

    again = ends(words, disturbed, 1200)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "== memory_bank" not in again.stderr
    assert numbers(out) == numbers(plain / "out")
    assert [path.name for path in (out / "unimmad" / "seed_0").glob("run*")] == ["run"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_method_whose_settings_cannot_work_leaves_the_others(shards, tmp_path):
    done = ends(command(shards, "--methods", "dinomaly,memory_bank"), tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for text in (done.stderr, " ".join(done.stdout.split())):
        assert "dinomaly, seed 0: train ended with status 2: unimmad train: model.image_size: 64 is not a" in text
    assert {method for _, method in means(tmp_path / "out" / "comparison.csv")} == {"memory_bank"}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_equal_minutes_train_every_method_so_long(shards, tmp_path):
    done = ends(command(shards, "--methods", "rd", "--minutes", "0.2"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = csv.DictReader((tmp_path / "out" / "cost.csv").open(newline=""))
    assert int(row["steps"]) > 1
    assert not (tmp_path / "out" / "rd" / "seed_0" / "probe").exists()
