"""Dinomaly against what its authors' code computes."""

import numpy as np
import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close
from methods.peer_vits import (
    assert_same_gradient_norms,
    dinov2_of,
    fill,
    loss_and_gradients,
    map_and_score_of_256,
    weights_file,
)
from torch import nn

from unimmad.methods.dinomaly import Dinomaly, DinomalySettings
from unimmad.model.anomaly_map import cosine_distance


@pytest.fixture(scope="module")
def fixture() -> PeerFixture:
    return PeerFixture.read("Dinomaly")


def their_name(ours: str) -> str:
    return ours.replace("bottleneck.", "bottleneck.0.")


@pytest.fixture
def method(fixture, tmp_path) -> Dinomaly:
    settings = DinomalySettings(
        image_size=fixture.facts["size"],
        backbone=dinov2_of(fixture, "vit_of_dinomaly_fixture"),
        backbone_weights=weights_file(tmp_path, fixture.state("encoder.")),
        blocks=tuple(fixture.facts["target_layers"]),
        groups=tuple(map(tuple, fixture.facts["fuse_layers"])),
    )
    made = Dinomaly(settings)
    assert made.load_backbone() == "file weights.safetensors"
    fill(made, fixture.state(), their_name)
    return made


def test_tokens_and_blocks_of_the_teacher(fixture, method):
    seen = {}
    blocks = method.teacher.network.blocks
    blocks[0].register_forward_pre_hook(lambda block, inputs: seen.update(eval_tokens=inputs[0]))
    for place in (0, 2, 9):
        blocks[place].register_forward_hook(
            lambda block, inputs, output, place=place: seen.update({f"eval_encoder_block{place}": output})
        )
    method.teacher(fixture.tensor("img"))
    assert len(seen) == 4
    for name, value in seen.items():
        assert_close(value, fixture.tensor(name))


@torch.no_grad()
def test_features_maps_and_scores(fixture, method):
    compared = method.eval().compare(fixture.tensor("img"))
    for group, (target, decoded) in enumerate(zip(compared.teacher, compared.decoder, strict=True)):
        assert_close(target, fixture.tensor(f"eval_en{group}"))
        assert_close(decoded, fixture.tensor(f"eval_de{group}"))
        assert_close(cosine_distance(target, decoded), fixture.tensor(f"eval_cosdist{group}"))
    maps = method.token_maps(compared)
    assert_close(maps, fixture.tensor("eval_map_image_size"))
    blurred, scores = map_and_score_of_256(maps, fixture)
    assert_close(blurred, fixture.tensor("eval_map_256_blurred"))
    assert_close(scores, fixture.tensor("eval_image_score"))


@pytest.mark.parametrize(("easy_share", "step"), [("0", 0), ("0.45", 500), ("0.9", 1000), ("0.9", 5000)])
def test_loss_and_gradients_without_dropout(fixture, method, easy_share, step):
    method.train()
    method.bottleneck.dropout.p = 0.0
    loss = loss_and_gradients(method, fixture.tensor("img"), step)
    assert loss.item() == pytest.approx(fixture.outputs[f"train_loss_nodrop_p{easy_share}"].item(), rel=1e-4)
    assert_same_gradient_norms(method, fixture.facts["train_grad_norms"][f"nodrop_p{easy_share}"], their_name)


class GivenMasks(nn.Module):
    """Dropout whose masks are given, in the order of use."""

    def __init__(self, fixture: PeerFixture) -> None:
        super().__init__()
        self.packed = [fixture.outputs[f"dropout_keep{place}_packed"] for place in range(3)]
        self.used = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        kept = np.unpackbits(self.packed[self.used % 3])[: values.numel()].reshape(values.shape)
        self.used += 1
        return values * torch.from_numpy(kept) / 0.8


def test_features_loss_and_gradients_with_given_dropout(fixture, method):
    method.train()
    method.bottleneck.dropout = GivenMasks(fixture)
    loss = loss_and_gradients(method, fixture.tensor("img"), step=1000)
    assert loss.item() == pytest.approx(fixture.outputs["train_loss_masks_p0.9"].item(), rel=1e-4)
    assert_same_gradient_norms(method, fixture.facts["train_grad_norms"]["masks_p0.9"], their_name)
    decoder = method.compare(fixture.tensor("img")).decoder
    assert method.bottleneck.dropout.used == 6
    for group, decoded in enumerate(decoder):
        assert_close(decoded.detach(), fixture.tensor(f"train_masks_de{group}"))
