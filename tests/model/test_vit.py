from __future__ import annotations

import pytest
import torch
from methods.peer_vits import known_to_timm, tiny_vit, weights_file
from torch.nn import functional as F

from unimmad.model.backbone import load_backbone_weights
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.vit import FrozenViT, resampled_positions

ensure_torchvision_imports()
import timm  # noqa: E402


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "prefix"),
    [
        ("vit_tiny_patch16_224", 96, 1),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 56, 5),
        ("vit_small_patch16_dinov3", 32, 5),
    ],
)
def test_tokens_of_the_blocks_asked_for_are_those_of_timm(name, size, prefix, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name, img_size=size, num_classes=0).eval()
    vit = FrozenViT(name, [0, 2], size, "timm")
    load_backbone_weights(vit, weights_file(tmp_path, whole.state_dict()))
    assert len(vit.network.blocks) == 3
    with torch.no_grad():
        expected = whole.forward_intermediates(images(size), indices=[0, 2], output_fmt="NLC", intermediates_only=True)
    tokens = vit(images(size))
    for ours, theirs in zip(tokens, expected, strict=True):
        assert ours.prefix_NRD.shape == (2, prefix, vit.dim)
        assert ours.patches_NPD.shape == (2, vit.grid**2, vit.dim)
        assert not ours.patches_NPD.requires_grad
        torch.testing.assert_close(ours.patches_NPD, theirs)


def test_tokens_can_be_saved_for_a_backward_pass():
    tokens = FrozenViT(tiny_vit(), [1], 16, "timm")(images(16))[0].patches_NPD
    weight = torch.ones(24, requires_grad=True)
    (tokens * weight).sum().backward()
    assert weight.grad is not None


def test_a_network_without_tokens_before_the_patches_has_none():
    name = known_to_timm(
        "vit_without_class_of_tests",
        img_size=16,
        patch_size=4,
        embed_dim=8,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="avg",
    )
    tokens = FrozenViT(name, [0, 1], 16, "timm")(images(16))
    assert [token.prefix_NRD.shape for token in tokens] == [(2, 0, 8)] * 2


def test_weights_made_for_another_size_are_resampled_at_loading(tmp_path):
    made_for_16 = FrozenViT(tiny_vit(), [1], 16, "dinov2").network.state_dict()
    vit = FrozenViT(tiny_vit(), [1], 24, "dinov2")
    assert load_backbone_weights(vit, weights_file(tmp_path, made_for_16)) == "file weights.safetensors"
    expected = resampled_positions(made_for_16["pos_embed"], 6, "dinov2")
    assert expected.shape == (1, 36, 24)
    assert torch.equal(vit.network.pos_embed, expected)


def test_position_embeddings_of_the_same_grid_and_of_tokens_before_it_stay():
    positions = torch.randn(1, 2 + 16, 3)
    assert resampled_positions(positions, 4, "dinov2") is positions
    for how in ("dinov2", "timm"):
        assert torch.equal(resampled_positions(positions, 7, how)[:, :2], positions[:, :2])


def test_resampling_as_dinov2_is_that_of_a_grid_a_tenth_larger_than_asked_for():
    positions = torch.randn(1, 1 + 16, 3, dtype=torch.float64)
    ours = resampled_positions(positions, 2, "dinov2")[0, 1:].reshape(2, 2, 3)
    rows = torch.tensor([(row + 0.5) * 4 / 2.1 - 0.5 for row in range(2)], dtype=torch.float64)
    points = (2 * rows + 1) / 4 - 1
    grid = torch.stack(torch.meshgrid(points, points, indexing="ij")[::-1], dim=2)[None]
    maps = positions[:, 1:].reshape(1, 4, 4, 3).permute(0, 3, 1, 2)
    expected = F.grid_sample(maps, grid, mode="bicubic", padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, expected[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("name", "blocks", "size", "says"),
    [
        ("vit_tiny_patch16_224", [0], 100, "image_size: 100 is not a multiple of 16.*nearest that are: 96 and 112"),
        ("vit_tiny_patch16_224", [0], 10, "nearest that are: 16$"),
        ("vit_tiny_patch16_224", [3, 12], 96, "block 12 of vit_tiny_patch16_224 .* blocks 0 to 11"),
        ("resnet18", [0], 96, "model.backbone: timm can't build 'resnet18' as a vision transformer"),
        ("vit_of_nobody", [0], 96, "model.backbone: .*'vit_of_nobody'"),
    ],
)
def test_what_cannot_be_built_is_refused(name, blocks, size, says):
    with pytest.raises(ValueError, match=says):
        FrozenViT(name, blocks, size, "timm")


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("patch_embed.proj.weight", (24, 3, 2, 2), "patch_embed.proj.weight is"),
        ("pos_embed", (5,), "does not fit tiny_vit_of_tests"),
        ("pos_embed", (1, 16, 5), "does not fit tiny_vit_of_tests"),
        ("blocks.0.attn.qkv.weight", (1, 1), "qkv.weight is"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, shape, says, tmp_path):
    vit = FrozenViT(tiny_vit(), [1], 16, "timm")
    state = dict(vit.network.state_dict())
    state[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=says):
        load_backbone_weights(vit, weights_file(tmp_path, state))


def test_timms_weights_are_resampled_too_and_named(monkeypatch):
    vit = FrozenViT(tiny_vit(), [1], 24, "dinov2")
    made = timm.create_model(tiny_vit())
    made.prune_intermediate_layers([1], prune_norm=True)
    monkeypatch.setattr(FrozenViT, "new_network", lambda self, pretrained: made)
    assert load_backbone_weights(vit, "imagenet") == "pretrained (tiny_vit_of_tests, timm)"
    assert torch.equal(vit.network.blocks[1].mlp.fc1.weight, made.blocks[1].mlp.fc1.weight)
    assert vit.network.pos_embed.shape == (1, 36, 24)
