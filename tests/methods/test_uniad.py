from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from unimmad.config import TrainingSettings
from unimmad.methods.uniad import UniAD, UniADSettings, jittered, neighbour_mask
from unimmad.model.method import StepFacts

SIZE = 64
TINY: dict[str, Any] = {
    "image_size": SIZE,
    "backbone": "resnet18",
    "backbone_weights": "none",
    "hidden_dim": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward_dim": 32,
    "neighbour_window": 3,
}


def new_uniad(**settings: Any) -> UniAD:
    torch.manual_seed(0)
    return UniAD(UniADSettings(**TINY | settings))


@pytest.fixture(scope="module")
def method() -> UniAD:
    return new_uniad()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of the last of strides"),
        ({"strides": (4, 4, 16)}, r"strides \(4, 4, 16\) must increase"),
        ({"hidden_dim": 18, "heads": 4}, "hidden_dim 18 is not a multiple of 2 and of heads 4"),
        ({"hidden_dim": 15, "heads": 3}, "hidden_dim 15 is not a multiple of 2"),
        ({"neighbour_window": 8}, "neighbour_window 8 must be odd"),
        ({"neighbour_window": 5}, "neighbour_window 5 leaves some token nothing to see: .* is 4 x 4"),
        ({"neighbour_window": True}, r"(?s)neighbour_window.*should be a number"),
        ({"dropout": 1.0}, "dropout"),
        ({"jitter_scale": -1.0}, "jitter_scale"),
        ({"backbone": "hf-hub:someone/network"}, r"(?s)backbone.*name a network of timm's own list"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, says):
    with pytest.raises(ValidationError, match=says):
        UniADSettings(**TINY | settings)


def test_a_backbone_without_the_strides_is_refused_by_name_and_fits_with_others():
    says = r"model\.backbone: convnext_atto .*strides \[4, 8, 16, 32\]; strides 2, 4, 8 and 16 are needed"
    with pytest.raises(ValueError, match=says):
        new_uniad(backbone="convnext_atto")
    method = new_uniad(backbone="convnext_atto", strides=(8, 16))
    assert method.aligned_features(images(1)).shape == (1, 80 + 160, 4, 4)


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_b4"])
def test_a_step_reaches_every_trainable_parameter_and_no_other(backbone):
    method = new_uniad(backbone=backbone)
    output = method(images(3), [2, 1], torch.tensor([0, 1, 0]))
    method.loss(output, StepFacts(torch.ones(3), TrainingSettings())).total.backward()
    for name, weight in method.named_parameters():
        assert weight.requires_grad is not name.startswith("teacher.")
        assert (weight.grad is not None and bool(weight.grad.any())) is weight.requires_grad, name


def test_nothing_behind_the_teachers_last_map_is_built():
    assert len(new_uniad(backbone="tf_efficientnet_b4").teacher.network.blocks) == 5
    assert not hasattr(new_uniad().teacher.network, "layer4")


def test_one_convolution_of_efficientnet_b4_pads_statically_unless_told_otherwise():
    padded, timms = (new_uniad(backbone="tf_efficientnet_b4", static_padding=static) for static in (True, False))
    for (name, ours), (_, theirs) in zip(padded.teacher.named_modules(), timms.teacher.named_modules(), strict=True):
        assert (type(ours) is type(theirs)) is (name != "network.blocks.2.0.conv_dw")
    timms.teacher.load_state_dict(padded.teacher.state_dict())
    ours_TChw, theirs_TChw = (method.teacher_maps(images(1)) for method in (padded, timms))
    same = [torch.equal(ours, theirs) for ours, theirs in zip(ours_TChw, theirs_TChw, strict=True)]
    assert same == [True, True, False, False]


def test_the_teacher_stays_frozen_and_in_evaluation_mode(method):
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    for mode in (True, False, True):
        method.train(mode)
        assert method.reconstruction.training is mode
        assert not any(module.training for module in method.teacher.modules())
    method(images(2), [1, 1], torch.zeros(2, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


def test_features_are_disturbed_in_training_only():
    method = new_uniad(dropout=0)
    aligned_TChw = method.aligned_features(images(1))
    with torch.no_grad():
        noisy = [method.train().rebuild(aligned_TChw) for _ in range(2)]
        clean = [method.eval().rebuild(aligned_TChw) for _ in range(2)]
        still = new_uniad(dropout=0, jitter_scale=0).train().rebuild(aligned_TChw)
    assert not torch.equal(*noisy)
    assert torch.equal(*clean)
    torch.testing.assert_close(still, clean[0])


def test_noise_is_in_proportion_to_a_tokens_length():
    tokens_TPC = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    disturbed_TPC = jittered(tokens_TPC, torch.tensor([[[1.0, -2.0], [1.0, 1.0]]]), scale=20)
    assert disturbed_TPC.tolist() == [[[3 + 50, 4 - 100], [0, 0]]]


def test_the_target_is_never_disturbed(method):
    compared = method.train().compare(images(1))
    assert torch.equal(compared.aligned_TChw, method.aligned_features(images(1)))


def test_no_token_sees_itself_or_its_neighbours(method):
    """A changed token changes what far positions attend to, and nothing near it."""
    attention = method.eval().reconstruction.encoder[0].attention
    blocked_PP = neighbour_mask(4, 3)
    x_TPE = torch.randn(1, 16, 16)
    changed_TPE = x_TPE.clone()
    changed_TPE[0, 5] += 1
    positions_PE = torch.zeros(16, 16)
    with torch.no_grad():
        moved_TPE = attention(x_TPE, changed_TPE, positions_PE, blocked_PP) - attention(
            x_TPE, x_TPE, positions_PE, blocked_PP
        )
    unmoved = (moved_TPE.abs().amax(dim=2)[0] == 0).nonzero().flatten().tolist()
    assert unmoved == [0, 1, 2, 4, 5, 6, 8, 9, 10]


def test_the_maps_of_a_samples_images_are_joined_by_the_root_of_their_squares(method):
    method.eval()
    with torch.no_grad():
        alone_THW = method.maps(method(images(3), [1, 1, 1], torch.zeros(3, dtype=torch.int64)))
        joined_BHW = method.maps(method(images(3), [2, 1], torch.tensor([0, 1, 0])))
    wanted_BHW = torch.stack([alone_THW[:2].square().sum(dim=0).sqrt(), alone_THW[2]])
    torch.testing.assert_close(joined_BHW, wanted_BHW)
    assert joined_BHW.shape == (2, SIZE, SIZE)
    assert (joined_BHW > 0).all()


def test_linear_maps_begin_as_the_authors():
    layers = [layer for layer in new_uniad().reconstruction.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 2 + 3 * 2 + 1 + 2 * 2  # projections, feedforward, heads of encoder and decoder
    for layer in layers:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_the_backbone_is_loaded_as_the_settings_say(method, tmp_path):
    assert method.load_backbone() == "none (random)"
    path = tmp_path / "weights.pth"
    torch.save(method.teacher.network.state_dict(), path)
    other = new_uniad(backbone_weights=str(path), jitter_scale=0)
    with torch.no_grad():
        other.teacher.network.conv1.weight.zero_()
    assert other.load_backbone() == "file weights.pth"
    assert torch.equal(other.aligned_features(images(1)), method.aligned_features(images(1)))
