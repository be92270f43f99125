"""The evaluation command as a user types it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards, take_digests_again

from unimmad.cli.evaluate import next_steps
from unimmad.config import load_recipe
from unimmad.data.index import load_index
from unimmad.data.synthetic.default_set import SYNTHETIC_FOLDER
from unimmad.evaluation import scoring
from unimmad.serialization.folder_lock import FolderLock

SCRIPT = Path(__file__).parents[2] / "tools" / "evaluate.py"
TRAINING_COMMAND = "unimmad train"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return importlib.import_module("unimmad.cli.evaluate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder as training leaves it: data/small and runs/tiny; and a file of weights."""
    folder = tmp_path_factory.mktemp("work")
    hand_made_shards(folder / "data" / "small", ["solids"])
    hand_made_checkpoint(folder / "runs" / "tiny", load_recipe("tiny"), [Path("data/small")])
    (folder / "weights.pth").touch()
    return folder


@pytest.fixture
def typed(tool, monkeypatch, capsys):
    """Run the tool in a folder with the words given; returns its exit code, standard output and standard error."""

    def call(folder: Path, *argv: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
        try:
            code = tool.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_in_an_empty_folder_it_names_the_training_command(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"evaluate.py: no run in runs/ yet; train one first: {TRAINING_COMMAND}\n"
    assert list(tmp_path.iterdir()) == []


def test_by_default_the_newest_run_on_the_data_it_was_trained_on(typed, trained):
    code, out, _ = typed(trained)
    assert code == 0
    assert "cookie" in out
    assert "data/small" in out
    report = trained / "runs" / "tiny" / "evaluation"
    for name in ("report.json", "report.csv", "report.md", "overview.png", "report.html"):
        assert f" {Path(os.path.relpath(report / name, trained))}" in out
        assert (report / name).is_file()
    assert len(list((report / "pictures").glob("*.png"))) == 2
    assert out.splitlines()[-1].endswith("unimmad predict --checkpoint runs/tiny IMAGES")


def test_after_the_synthetic_set_it_says_how_to_train_on_ones_own_data_by_a_command_that_is_there(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    predict, shards, train = next_steps(Path("runs/demo 2"), [SYNTHETIC_FOLDER.resolve()]).splitlines()
    assert predict.endswith("unimmad predict --checkpoint 'runs/demo 2' IMAGES")
    assert shards.startswith("train    ")
    assert shards.endswith("unimmad shards FOLDER --target data/mine")
    assert train.endswith("unimmad train --recipe drawn_search --data data/mine")
    assert (tmp_path / predict.split()[1]).samefile(Path(sys.executable).with_name("unimmad"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert next_steps(Path("runs/demo"), []) == "predict  unimmad predict --checkpoint runs/demo IMAGES"


def test_a_run_written_later_is_the_default(typed, trained):
    hand_made_checkpoint(trained / "runs" / "aside", load_recipe("tiny"), [Path("data/small")])
    for run, moment in (("tiny", 1000), ("aside", 2000)):
        os.utime(trained / "runs" / run / "checkpoints" / "latest", (moment, moment))
    code, out, _ = typed(trained)
    assert code == 0
    assert "runs/aside/checkpoints/step_00000003" in out
    assert (trained / "runs" / "aside" / "evaluation" / "report.json").is_file()


def test_checkpoint_data_and_output_can_be_named(typed, trained, tmp_path):
    argv = [
        "--checkpoint",
        str(trained / "runs/tiny/checkpoints/step_00000003"),
        "--data",
        str(trained / "data/small"),
    ]
    code, _, _ = typed(tmp_path, *argv, "--output-dir", "mine", "--split", "train", "--workers", "0")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "(train split)" in (tmp_path / "mine" / "report.md").read_text()


def test_a_report_on_other_data_is_not_replaced_unless_its_folder_is_named(typed, trained, tmp_path):
    """And then no picture of the report before is left."""
    work = shutil.copytree(trained, tmp_path / "work")
    hand_made_shards(work / "data" / "other", ["materials"])
    assert typed(work, "--checkpoint", "runs/tiny", "--workers", "0")[0] == 0
    report = work / "runs" / "tiny" / "evaluation"
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    own = (report / "report.json").read_text()
    (report / "report.json").write_text(own.replace("step_00000003", "step_00000009"))
    code, _, err = typed(work, "--checkpoint", "runs/tiny/checkpoints/step_00000003", "--workers", "0")
    assert code == 2
    assert "holds the report on step_00000009; choose a folder for step_00000003 with --output-dir" in err
    (report / "report.json").write_text(own)
    argv = ["--checkpoint", "runs/tiny", "--workers", "0", "--data", "data/other"]
    code, out, err = typed(work, *argv)
    assert (code, out) == (2, "")
    said = "holds the report on data/small (test split); choose a folder for data/other (test split) with --output-dir"
    assert err == f"evaluate.py: runs/tiny/evaluation {said}\n"
    assert typed(work, "--checkpoint", "runs/tiny", "--split", "train")[0] == 2
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    (report / "pictures" / "mine.png").write_bytes(b"somebody else's")
    assert typed(work, *argv, "--output-dir", "runs/tiny/evaluation")[0] == 0
    of_other = {"materials-cloth.png", "materials-nut.png", "materials-tiles.png"}
    assert {path.name for path in (report / "curves").iterdir()} == of_other
    assert {path.name for path in (report / "pictures").iterdir()} == {*of_other, "mine.png"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "weights.pth"], "weights.pth is a file, and a checkpoint is a folder; unimmad convert makes"),
        (["--checkpoint", "nowhere"], "nowhere is not a checkpoint, nor a run folder with one"),
        (["--checkpoint", "data/small"], "data/small is not a checkpoint, nor a run folder with one"),
        (["--data", "nowhere"], "data folder nowhere does not exist"),
        (["--data", "runs"], "runs holds no index.json: it is not a shard folder"),
        (["--data", "data/small", "data/small"], "dataset solids is in both"),
        (["--output-dir", "data/small/index.json/x"], "cannot write data/small/index.json/x"),
        (["--device", "gpu"], "device gpu can't be used here"),
        (["--device", "cuda:99"], "device cuda:99 can't be used here"),
        (["--workers", "-1"], "--workers -1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--modalities", "sonar"], "no dataset has a modality 'sonar'"),
        (["--modalities", ","], "--modalities names none"),
        (["--compare", "nowhere.json"], "nowhere.json can't be read as a report"),
        (
            ["--calibrate", "--modalities", "rgb", "--split", "train"],
            "--modalities, --split: of no effect with --calib",
        ),
        (["--report", "x", "--mask-resize", "bilinear"], "--mask-resize: of no effect with --report"),
        (["--report", "x", "--output-dir", "y"], "leave --output-dir out, or add --compare"),
        (["--false-alarm-rate", "0.1"], "--false-alarm-rate is for --calibrate"),
        (["--report", "data/small/index.json"], "data/small/index.json: the report"),
        (["--published"], "no published row of unimmad for solids"),
        (["--scratch-dir", "data/small/index.json/x"], "cannot keep pixel scores in data/small/index.json/x"),
    ],
)
def test_bad_input_is_one_line_and_code_2(typed, trained, argv, message):
    code, out, err = typed(trained, *argv)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_command_in_a_checkpoint_is_not_run(typed, trained, tmp_path):
    hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), ["pipe:touch ran; cat x/{}"])
    code, out, err = typed(tmp_path, "--checkpoint", "run")
    assert (code, out) == (2, "")
    assert "state.json names the command 'pipe:touch ran; cat x/{}' as its data" in err
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_whose_data_are_elsewhere_names_its_state_and_the_option(typed, trained, tmp_path):
    shutil.copytree(trained / "runs" / "tiny", tmp_path / "run")
    code, out, err = typed(tmp_path, "--checkpoint", "run")
    assert (code, out) == (2, "")
    state = "run/checkpoints/step_00000003/state.json"
    says = f"{state} names the data folder data/small, which does not exist; say where by --data DIR"
    assert err == f"evaluate.py: {says}\n"


def test_a_checkpoint_that_names_no_data_needs_the_option(typed, trained, tmp_path):
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [])
    state = json.loads((checkpoint / "state.json").read_text())
    del state["data"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    take_digests_again(checkpoint)
    code, out, err = typed(tmp_path, "--checkpoint", "run")
    assert (code, out) == (2, "")
    assert "names no data that it was trained on; give shard folders with --data DIR" in err
    assert err.count("\n") == 1
    argv = ["--checkpoint", "run", "--data", str(trained / "data" / "small"), "--workers", "0"]
    assert typed(tmp_path, *argv)[0] == 0


def test_data_by_url_and_a_corrupt_sample(typed, trained, tmp_path):
    """The same checkpoint and shards: it stops by default; with skip the report says what was left out."""
    shutil.copytree(trained / "data" / "small", tmp_path / "set")
    index = load_index(tmp_path / "set")
    sample = index.classes("test")["solids/cookie"][0]
    with (tmp_path / "set" / index.shards[sample.shard].name).open("r+b") as file:
        file.seek(next(iter(sample.images.values())).offset)
        file.write(b"nothing")
    argv = ["--checkpoint", str(trained / "runs/tiny"), "--output-dir", "out", "--data"]
    code, _, err = typed(tmp_path, *argv, "set")
    assert code == 2
    assert f"set/{index.shards[sample.shard].name}: solids/{sample.key}.0.png: does not open" in err
    assert typed(tmp_path, *argv, "set", "--on-error", "skip")[0] == 0
    assert "1 samples could not be read" in (tmp_path / "out" / "report.md").read_text()
    url = f"pipe:cat {trained}/data/small/{{}}"
    assert typed(tmp_path, *argv, url, "--cache-dir", "cache")[0] == 0
    assert list((tmp_path / "cache").glob("*.tar"))
    assert "could not be read" not in (tmp_path / "out" / "report.md").read_text()


def test_options_of_the_run_reach_the_report(typed, trained, tmp_path):
    argv = ["--output-dir", str(tmp_path / "one"), "--batch-size", "1", "--precision", "bf16", "--workers", "0"]
    code, out, _ = typed(trained, *argv, "--modalities", "depth", "--scratch-dir", str(tmp_path / "spilled"))
    assert code == 0
    assert "bf16 on cpu" in out
    assert "depth only" in out
    assert list((tmp_path / "spilled").iterdir()) == []


def test_the_way_to_compute_reaches_the_model(typed, trained, tmp_path, monkeypatch):
    called = []
    for name in ("use_channels_last", "compile_networks"):
        monkeypatch.setattr(scoring, name, lambda *_, name=name: called.append(name))
    argv = ["--output-dir", str(tmp_path / "one"), "--workers", "0", "--no-resume"]
    assert typed(trained, *argv)[0] == 0
    assert called == []
    assert typed(trained, *argv, "--channels-last", "--compile")[0] == 0
    assert called == ["use_channels_last", "compile_networks"]


def test_what_the_recipe_switches_on_can_be_switched_off(typed, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "compile_networks", lambda *_: pytest.fail("it compiles"))
    recipe = load_recipe("tiny", ["evaluation.compile=true"])
    hand_made_checkpoint(tmp_path / "run", recipe, [trained / "data/small"])
    assert typed(tmp_path, "--checkpoint", "run", "--workers", "0", "--no-compile")[0] == 0


def test_compiling_without_a_compiler_is_one_line_and_code_2(typed, trained, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    code, out, err = typed(trained, "--compile", "--workers", "0", "--device", "cpu", "--no-resume")
    assert (code, out) == (2, "")
    assert "torch.compile needs a C++ compiler" in err
    assert err.count("\n") == 1


def test_each_modality_and_a_comparison(typed, trained, tmp_path):
    code, out, _ = typed(trained, "--output-dir", str(tmp_path / "one"), "--modalities", "each", "--workers", "0")
    assert code == 0
    assert "What each modality is worth" in out
    assert f"table    {tmp_path / 'one' / 'modalities' / 'modalities.csv'}" in out
    argv = ["--report", str(tmp_path / "one"), "--compare", str(tmp_path / "one" / "modalities" / "rgb")]
    code, out, _ = typed(trained, *argv, "--output-dir", str(tmp_path / "compared"))
    assert code == 0
    assert "Differences: this report minus" in out
    assert "modalities: - (this), rgb only (other)" in out
    assert sorted(path.name for path in (tmp_path / "compared").iterdir()) == ["comparison.csv", "comparison.md"]


def test_an_interruption_is_one_line(typed, trained, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("unimmad.cli.evaluate.evaluate_checkpoint", interrupted)
    code, out, err = typed(trained, "--output-dir", str(tmp_path))
    assert (code, out) == (130, "")
    assert err == "evaluate.py: interrupted; the same command continues after the last finished class\n"


def test_a_checkpoint_of_another_recipe_is_one_line(typed, trained, tmp_path):
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [trained / "data" / "small"])
    state = json.loads((checkpoint / "state.json").read_text())
    state["recipe"]["model"]["embed_dim"] *= 2
    (checkpoint / "state.json").write_text(json.dumps(state))
    take_digests_again(checkpoint)
    code, out, err = typed(tmp_path, "--checkpoint", "run")
    assert (code, out) == (2, "")
    assert "is of another recipe: " in err
    assert err.count("\n") == 1


def test_a_checkpoint_that_changed_is_one_line_and_evaluated_only_when_asked(typed, trained, tmp_path):
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [trained / "data" / "small"])
    content = bytearray((checkpoint / "model-00001.safetensors").read_bytes())
    content[-2] ^= 1
    (checkpoint / "model-00001.safetensors").write_bytes(content)
    argv = ["--checkpoint", "run", "--workers", "0"]
    code, out, err = typed(tmp_path, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("evaluate.py: run/checkpoints/step_00000003/model-00001.safetensors is not what was saved")
    assert err.count("\n") == 1
    assert typed(tmp_path, *argv, "--no-verify")[0] == 0


def test_a_second_evaluation_into_the_same_folder_is_told_who_writes_there(typed, trained, tmp_path):
    with FolderLock("evaluation.lock", "evaluation") as lock:
        lock.take(tmp_path / "report")
        code, out, err = typed(trained, "--output-dir", str(tmp_path / "report"))
    assert (code, out) == (2, "")
    assert f"report is in use: evaluation.lock is held by process {os.getpid()} on " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("file", ["state.json", "index.json", "model-00000.safetensors"])
def test_a_damaged_checkpoint_is_one_line_naming_the_file(typed, trained, tmp_path, file):
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [trained / "data" / "small"])
    (checkpoint / file).write_bytes((checkpoint / file).read_bytes()[:100])
    code, out, err = typed(tmp_path, "--checkpoint", "run")
    assert (code, out) == (2, "")
    assert file in err
    assert err.startswith("evaluate.py: ")
    assert err.count("\n") == 1
