"""A pretended released checkpoint: the released names, on a small backbone, other parts at their smallest."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import fill_model, load_checkpoint
from unimmad.checkpoint.released import FILES, our_name
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.cli.evaluate import main as evaluate_main
from unimmad.config import load_recipe
from unimmad.data.layouts import find_set
from unimmad.data.writing.shards import write_shards
from unimmad.model import backbone
from unimmad.model.unimmad import UniMMAD

Capsys = pytest.CaptureFixture[str]

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "model.image_size=64",
    "model.backbone=resnet26",
    "model.fcm_dim=12",
    "model.bottleneck_dim=16",
    "model.decoder_planes=[4, 4, 4]",
    "model.decoder_blocks=[1, 1, 1]",
    "model.embed_dim=8",
    "model.leaders=8",
    "model.base_experts=4",
    "data.workers=0",
]
LEFT_OUT = {
    "general_multimodal_encoder.0.model.layer4.0.conv1.weight": "layer4",
    "general_multimodal_encoder.0.model.layer4.0.bn1.num_batches_tracked": "layer4",
    "general_multimodal_encoder.0.model.bn1.num_batches_tracked": "num_batches_tracked",
    "c_moes.0.conv_out_second.0.weight": "conv_out_second",
    "c_moes.2.prior_head.bias": "prior_head",
}


@pytest.fixture(scope="module")
def source() -> UniMMAD:
    """The model whose weights were released; no norm, bias or running statistic has its starting value."""
    torch.manual_seed(0)
    model = UniMMAD(load_recipe("paper", SMALL).model).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1 and not name.endswith("num_batches_tracked"):
                tensor.add_(0.2 * torch.rand(tensor.shape))
    return model


@pytest.fixture(scope="module")
def teacher_file(source: UniMMAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "teacher.pth"
    torch.save(source.teacher.network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def released(source: UniMMAD, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    tensors = released_tensors(source) | {name: torch.zeros(1) for name in LEFT_OUT}
    for file, part in FILES.items():
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        save_file({name.removeprefix(f"{part}."): tensor for name, tensor in own.items()}, folder / file)
    return folder


def released_tensors(model: UniMMAD) -> dict[str, Tensor]:
    """The model's tensors, all but the teacher's, under their released names."""
    official = json.loads((REPOSITORY / "tests" / "fixtures" / "official_state.json").read_text())["shapes"]
    state = model.state_dict()
    tensors, found = {}, set()
    for name in official:
        ours = our_name(name)
        if ours in state and not name.startswith("teacher."):
            tensors[name] = state[ours][0] if "expert_bases" in name else state[ours]
            found.add(ours)
    assert found == {n for n in state if not n.startswith("teacher.") and not n.endswith("num_batches_tracked")}
    return tensors


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return importlib.import_module("unimmad.cli.convert")


def options(*settings: str) -> list[str]:
    return [word for setting in (*SMALL, *settings) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def run(released: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder that a conversion made, and what it said; where DeepSpeed can't be imported."""
    folder = tmp_path_factory.mktemp("runs") / "released"
    without_deepspeed = (
        "import runpy, sys; sys.modules['deepspeed'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    argv = [str(released), "--output-dir", str(folder), *options(f"model.backbone_weights={teacher_file}")]
    command = [sys.executable, "-c", without_deepspeed, str(REPOSITORY / "tools" / "convert.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_converted_model_gives_the_maps_of_the_one_released(source: UniMMAD, run: tuple[Path, str]) -> None:
    converted = load_checkpoint(find_checkpoint(run[0])).model
    images_TCHW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    maps = []
    with torch.no_grad():
        for model in (source, converted):
            maps.append(model.maps(model(images_TCHW, (2, 1), torch.tensor([0, 2, 1]))))
    assert maps[0].std() > 0
    assert torch.equal(maps[0], maps[1])


def test_the_state_is_that_of_a_finished_run_at_step_0(released: Path, run: tuple[Path, str]) -> None:
    checkpoint = run[0] / "checkpoints" / "step_00000000"
    assert find_checkpoint(run[0]) == checkpoint
    state = read_state(checkpoint)
    assert (state["step"], state["data_position"], state["finished"], state["data"]) == (0, 0, True, [])
    assert state["converted_from"] == str(released)
    assert state["backbone_weights"] == "file teacher.pth"
    assert state["recipe"]["name"] == "paper"
    assert sorted(path.name for path in run[0].iterdir()) == ["checkpoints"]
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["latest", checkpoint.name]


def test_training_can_start_from_it_and_its_teacher_is_the_backbone_files(
    source: UniMMAD, run: tuple[Path, str]
) -> None:
    model = UniMMAD(load_recipe("paper", SMALL).model)
    fill_model(model, TensorReader(find_checkpoint(run[0])))
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(model.teacher.network.conv1.weight, model.encoder.network.conv1.weight)


def test_what_was_dropped_is_listed_by_part(source: UniMMAD, run: tuple[Path, str]) -> None:
    lines = run[1].splitlines()
    assert lines[0] == f"loaded  {len(released_tensors(source))} tensors"
    assert [line for line in lines if line.startswith("dropped")] == [
        "dropped conv_out_second: 1 tensors",
        "dropped layer4: 2 tensors",
        "dropped num_batches_tracked: 1 tensors",
        "dropped prior_head: 1 tensors",
    ]
    assert "the maps mean nothing" not in run[1]
    assert f"written {run[0] / 'checkpoints' / 'step_00000000'}" in lines


def test_a_random_teacher_is_made_only_with_a_note(
    tool: ModuleType, released: Path, tmp_path: Path, capsys: Capsys
) -> None:
    argv = [str(released), "--output-dir", str(tmp_path / "run"), *options("model.backbone_weights=none")]
    assert tool.main(argv) == 0
    printed = capsys.readouterr().out
    assert "teacher weights: none (random)" in printed
    assert "the maps mean nothing" in printed


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = tmp_path_factory.mktemp("data") / "road" / "asphalt"
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/hole"):
        (parts / part).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(parts / part / "000.png")
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:16, 8:16] = 255
    (parts / "ground_truth" / "hole").mkdir(parents=True)
    Image.fromarray(mask).save(parts / "ground_truth" / "hole" / "000_mask.png")
    target = parts.parents[1] / "shards"
    write_shards([find_set(parts.parent).source], target)
    return target


def evaluate(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--device", "cpu", *(str(word) for word in argv)])
    return evaluate_main()


def test_evaluation_scores_it_on_the_data_given(
    run: tuple[Path, str], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    assert evaluate(monkeypatch, "--checkpoint", run[0], "--data", shards, "--output-dir", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "asphalt" in printed
    assert "weights: file teacher.pth" in printed


def test_evaluation_without_data_says_what_to_give(
    run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    assert evaluate(monkeypatch, "--checkpoint", run[0]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "names no data" in printed.err
    assert "--data DIR" in printed.err


def refuse(tool: ModuleType, released: Path, run: Path, capsys: Capsys, *settings: str) -> str:
    """Convert, which must fail in one line and leave nothing at ``run`` that was not there; the line."""
    before = sorted(run.rglob("*"))
    assert tool.main([str(released), "--output-dir", str(run), *options(*settings)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert sorted(run.rglob("*")) == before
    return printed.err


def test_a_folder_with_a_checkpoint_is_refused(
    tool: ModuleType, released: Path, run: tuple[Path, str], capsys: Capsys
) -> None:
    assert "holds a checkpoint already (step_00000000)" in refuse(tool, released, run[0], capsys)


def test_a_missing_file_is_named(tool: ModuleType, released: Path, tmp_path: Path, capsys: Capsys) -> None:
    shutil.copy(released / "model_1.safetensors", tmp_path / "model.safetensors")
    message = refuse(tool, tmp_path, tmp_path / "run", capsys)
    assert f"{tmp_path / 'model_1.safetensors'} does not exist; a released checkpoint folder holds" in message


def test_another_image_size_is_named_before_the_teacher_is_looked_for(
    tool: ModuleType, released: Path, tmp_path: Path, capsys: Capsys
) -> None:
    missing_teacher = f"model.backbone_weights={tmp_path / 'none.pth'}"
    message = refuse(tool, released, tmp_path / "run", capsys, "model.image_size=96", missing_teacher)
    assert "trained at image size 64 and the recipe says 96" in message


def test_other_sizes_are_named(tool: ModuleType, released: Path, tmp_path: Path, capsys: Capsys) -> None:
    message = refuse(tool, released, tmp_path / "run", capsys, "model.leaders=4")
    assert "is [8, 4, 8] in the checkpoint and [4, 4, 8] in the recipe" in message


def test_imagenet_weights_that_cannot_be_had_name_the_option(
    tool: ModuleType, released: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(model: backbone.Backbone) -> None:
        raise OSError("no network")

    monkeypatch.setattr(backbone, "_load_imagenet", offline)
    message = refuse(tool, released, tmp_path / "run", capsys)
    assert "can't be had (no network)" in message
    assert "--set model.backbone_weights=FILE" in message


def test_an_output_folder_that_cannot_be_made_is_named(
    tool: ModuleType, released: Path, teacher_file: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "run").write_text("a file")
    message = refuse(tool, released, tmp_path / "run", capsys, f"model.backbone_weights={teacher_file}")
    assert f"can't be written to {tmp_path / 'run' / 'checkpoints'}" in message
