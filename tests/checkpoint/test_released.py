"""A pretended released checkpoint: its names with the sizes of the tiny recipe, whose names are among the paper's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimmad.checkpoint.released import FILES, load_released, our_name, read_released, translate
from unimmad.config import load_recipe
from unimmad.model.unimmad import UniMMAD

SETTINGS = load_recipe("tiny").model
OFFICIAL_SHAPES: dict[str, list[int]] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "official_state.json").read_text()
)["shapes"]
LEFT_OUT = (
    "general_multimodal_encoder.0.model.layer4.0.conv1.weight",
    "general_multimodal_encoder.0.model.bn1.num_batches_tracked",
    "c_moes.0.conv_out_second.weight",
    "c_moes.2.prior_head.bias",
)


@pytest.fixture(scope="module")
def model() -> UniMMAD:
    torch.manual_seed(0)
    return UniMMAD(SETTINGS)


@pytest.fixture
def released(model) -> dict[str, Tensor]:
    """Every tensor of the tiny model but the teacher's, under its released name, with values of its own."""
    generator = torch.Generator().manual_seed(3)
    state = model.state_dict()
    tensors = {}
    for name in OFFICIAL_SHAPES:
        ours = our_name(name)
        if ours in state and not name.startswith("teacher."):
            shape = state[ours].shape[1:] if "expert_bases" in name else state[ours].shape
            tensors[name] = torch.rand(shape, generator=generator)
    return tensors | {name: torch.zeros(1) for name in LEFT_OUT}


def write(folder: Path, released: dict[str, Tensor], prefix: str = "") -> None:
    for file, part in FILES.items():
        own = {name: tensor for name, tensor in released.items() if name.startswith(f"{part}.")}
        save_file({prefix + name.removeprefix(f"{part}."): tensor for name, tensor in own.items()}, folder / file)


def test_names_map_one_to_one_onto_the_paper_models_with_its_shapes():
    with torch.device("meta"):
        model = UniMMAD(load_recipe("paper", ["model.image_size=64"]).model)
    wanted = {name: list(t.shape) for name, t in model.state_dict().items() if "num_batches_tracked" not in name}
    translated = {}
    for name, shape in OFFICIAL_SHAPES.items():
        ours = our_name(name)
        if ours is not None:
            assert ours not in translated, f"{name} and another are both {ours}"
            translated[ours] = [1, *shape] if "expert_bases" in name else shape
    assert translated == wanted


def test_every_official_tensor_left_out_is_of_an_unused_part():
    for name in (name for name in OFFICIAL_SHAPES if our_name(name) is None):
        assert any(part in name for part in (".layer4.", ".conv_out_second.", ".prior_head.")), name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_three_files_are_read_and_loaded(prefix, model, released, tmp_path):
    write(tmp_path, released, prefix)
    translation = read_released(tmp_path)
    assert sorted(translation.dropped) == sorted(LEFT_OUT)
    teacher_before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    load_released(model, translation)
    state = model.state_dict()
    loaded = set()
    for name, tensor in released.items():
        ours = our_name(name)
        if ours is not None:
            assert torch.equal(state[ours].reshape(tensor.shape), tensor), name
            loaded.add(ours)
    assert loaded == {n for n in state if not n.startswith("teacher.") and not n.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, teacher_before[name]) for name, tensor in model.teacher.state_dict().items())


def test_parts_are_not_mixed_up(model, released, tmp_path):
    """A few names followed by hand, so that a rule that swaps two parts of the same shape is seen."""
    write(tmp_path, released)
    load_released(model, read_released(tmp_path))
    level, compression = model.levels[1], model.compression
    pairs = {
        "c_moes.1.conv_share.0.weight": level.key[0].weight,
        "c_moes.1.conv_prior.0.weight": level.query[0].weight,
        "c_moes.1.MoEs.2.gate.gate.bias": level.branches[2].routed.gate.linear.bias,
        "c_moes.1.MoEs.0.soft_expert": level.branches[0].fixed_EEkk,
        "c_moes.1.expert_bases.2": level.branches[2].bank.kernels_GNEEkk[0],
        "general_multimodal_encoder.1.bn3.b1.pw.weight": compression.inner[1].branches[0].pointwise[0].weight,
        "general_multimodal_encoder.1.bn5.b3.na.0.bias": compression.inner[2].branches[2].pointwise[1].bias,
        "general_multimodal_encoder.1.conv_x1.0.downsample.weight": compression.to_stride_8[0].skip.weight,
        "general_multimodal_encoder.1.conv_x3.0.upsample.bias": compression.to_stride_8[2].skip.bias,
        "general_multimodal_encoder.1.decoder.layer3.0.upsample.0.weight": compression.decoder.stages[2][0]
        .skip[0]
        .weight,
        "general_multimodal_encoder.1.final.2.weight": compression.heads[2].weight,
        "input_embedding.input_embedding": model.input_embedding.embedding_CHW,
    }
    for name, parameter in pairs.items():
        assert torch.equal(released[name], parameter), name


def test_a_teacher_in_the_checkpoint_is_loaded_too(model, released):
    stem = torch.rand(model.teacher.network.conv1.weight.shape)
    load_released(model, translate(released | {"teacher.model.conv1.weight": stem}))
    assert torch.equal(model.teacher.network.conv1.weight, stem)


def assert_refused_and_unchanged(model, released, says: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        load_released(model, translate(released))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_image_size_is_refused_by_name(model, released):
    released["input_embedding.input_embedding"] = torch.zeros(12, 256, 256)
    assert_refused_and_unchanged(model, released, r"image size 256 and the recipe says 64.*model\.image_size=256")


def test_an_embedding_of_no_dimension_is_refused(model, released):
    released["input_embedding.input_embedding"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"input_embedding\.embedding_CHW is \[\] in the checkpoint"):
        load_released(model, translate(released))


def test_a_missing_tensor_is_named(model, released):
    del released["c_moes.2.expert_bases.1"]
    assert_refused_and_unchanged(model, released, r"lacks 1 tensors .*levels\.2\.branches\.1\.bank\.kernels_GNEEkk")


def test_a_missing_embedding_is_named(model, released):
    del released["input_embedding.input_embedding"]
    assert_refused_and_unchanged(model, released, r"lacks 1 tensors .*input_embedding\.embedding_CHW")


def test_a_tensor_that_the_recipe_has_no_place_for_is_named(model, released):
    released["general_multimodal_encoder.1.decoder.layer1.2.conv1.weight"] = torch.zeros(1)
    assert_refused_and_unchanged(model, released, r"has 1 tensors .*compression\.decoder\.stages\.0\.2\.conv1\.weight")


def test_other_sizes_are_named_with_both(model, released):
    released["c_moes.0.MoEs.0.experts"] = torch.zeros(32, 8, 256)
    says = r"levels\.0\.branches\.0\.routed\.leaders\.logits_LNE is \[32, 8, 256\] in the checkpoint and \[8, 4, 16\]"
    assert_refused_and_unchanged(model, released, says)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_what_are_no_real_numbers_is_refused(model, released, dtype):
    name = "c_moes.0.MoEs.0.experts"
    released[name] = released[name].to(dtype)
    assert_refused_and_unchanged(model, released, rf"logits_LNE is {dtype} in the checkpoint")


def test_two_tensors_for_one_of_ours_are_refused(model, released):
    """The rules take ``downsample`` and ``upsample`` for the same part."""
    name = "general_multimodal_encoder.1.conv_x1.0.downsample.weight"
    released[name.replace("downsample", "upsample")] = released[name]
    assert_refused_and_unchanged(model, released, r"upsample\.weight is a second tensor for compression\.to_stride_8")


def test_a_name_with_and_without_its_prefix_is_refused(released, tmp_path):
    name = "input_embedding.input_embedding"
    write(tmp_path, released)
    file = tmp_path / "model_1.safetensors"
    save_file({**load_file(file), "module.input_embedding": torch.zeros_like(released[name])}, file)
    with pytest.raises(ValueError, match=r"model_1\.safetensors holds a tensor twice"):
        read_released(tmp_path)


@pytest.mark.parametrize(
    "name", ["optimizer.step", "c_moes.0.something.weight", "input_embedding.input_embedding.more"]
)
def test_a_name_that_no_released_checkpoint_has_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is not a tensor of a released UniMMAD checkpoint"):
        our_name(name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_named(model, released, value):
    released["c_moes.2.expert_bases.1"].view(-1)[3] = value
    says = r"levels\.2\.branches\.1\.bank\.kernels_GNEEkk holds values that are NaN or infinite"
    assert_refused_and_unchanged(model, released, says)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file, released, tmp_path):
    write(tmp_path, released)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"{file} does not exist"):
        read_released(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_short_is_named(file, released, tmp_path):
    write(tmp_path, released)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file} can't be read"):
        read_released(tmp_path)
