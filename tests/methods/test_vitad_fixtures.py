"""ViTAD against what its authors' code computes."""

import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close
from methods.peer_vits import (
    assert_same_gradient_norms,
    fill,
    known_to_timm,
    loss_and_gradients,
    weights_file,
)

from unimmad.methods.vitad import ViTAD, ViTADSettings
from unimmad.model.anomaly_map import cosine_distance, gaussian_blur, image_scores


@pytest.fixture(scope="module")
def fixture() -> PeerFixture:
    return PeerFixture.read("ViTAD")


def their_name(ours: str) -> str:
    return ours.replace("fusion.", "net_fusion.fc.").replace("student.", "net_s.")


@pytest.fixture
def method(fixture, tmp_path) -> ViTAD:
    facts = fixture.facts
    backbone = known_to_timm(
        "vit_of_vitad_fixture",
        img_size=facts["size"],
        patch_size=facts["patch"],
        embed_dim=facts["embed_dim"],
        depth=facts["encoder_depth"],
        num_heads=facts["num_heads"],
    )
    settings = ViTADSettings(
        image_size=facts["size"],
        backbone=backbone,
        backbone_weights=weights_file(tmp_path, fixture.state("net_t.")),
        teacher_blocks=tuple(block - 1 for block in facts["teachers"]),
        neck_block=facts["neck"][0] - 1,
        student_blocks=tuple(block - 1 for block in facts["students"]),
    )
    made = ViTAD(settings)
    assert made.load_backbone() == "file weights.safetensors"
    fill(made, fixture.state(), their_name)
    return made


@torch.no_grad()
def test_features_maps_and_scores(fixture, method):
    compared = method.eval().compare(fixture.tensor("img"))
    for level, (target, rebuilt) in enumerate(zip(compared.teacher, compared.student, strict=True), start=1):
        assert_close(target, fixture.tensor(f"eval_teacher{level}"))
        assert_close(rebuilt, fixture.tensor(f"eval_student{level}"))
        assert_close(cosine_distance(target, rebuilt), fixture.tensor(f"eval_cosdist{level}"))
    maps = method.token_maps(compared)
    assert_close(maps, fixture.tensor("eval_map_raw"))
    blurred = gaussian_blur(maps, kernel_size=33, sigma=4.0, border="mirror")
    assert_close(blurred, fixture.tensor("eval_map"))
    scores = image_scores(blurred, top_share=0.0, pool=fixture.facts["image_score_pool"][0])
    assert_close(scores, fixture.tensor("eval_image_score"))


@torch.no_grad()
def test_neck_and_fusion(fixture, method):
    seen = []
    method.fusion.register_forward_hook(lambda part, inputs, output: seen.extend([inputs[0], output]))
    method.eval().compare(fixture.tensor("img"))
    assert_close(seen[0], fixture.tensor("eval_neck"))
    assert_close(seen[1], fixture.tensor("eval_fusion"))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_loss_and_gradients(fixture, method, mode):
    loss = loss_and_gradients(method.train(mode == "train"), fixture.tensor("img"))
    assert loss.item() == pytest.approx(fixture.outputs[f"{mode}_loss"].item(), rel=1e-4)
    assert_same_gradient_norms(method, fixture.facts["train_grad_norms"], their_name)
