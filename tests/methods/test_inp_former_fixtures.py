"""INP-Former against what its authors' code computes."""

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

from unimmad.methods.inp_former import INPFormer, INPFormerSettings, prototype_distances
from unimmad.model.anomaly_map import cosine_distance


@pytest.fixture(scope="module")
def fixture() -> PeerFixture:
    return PeerFixture.read("INP-Former")


def their_name(ours: str) -> str:
    for name, theirs in (("prototypes_MD", "prototype_token"), ("extractor.", "aggregation.0.")):
        ours = ours.replace(name, theirs)
    return ours.replace("bottleneck.", "bottleneck.0.")


@pytest.fixture
def method(fixture, tmp_path) -> INPFormer:
    settings = INPFormerSettings(
        image_size=fixture.facts["size"],
        backbone=dinov2_of(fixture, "vit_of_inp_former_fixture"),
        backbone_weights=weights_file(tmp_path, fixture.state("encoder.")),
        blocks=tuple(fixture.facts["target_layers"]),
        groups=tuple(map(tuple, fixture.facts["fuse_layers"])),
        prototypes=fixture.facts["inp_num"],
    )
    made = INPFormer(settings)
    assert made.load_backbone() == "file weights.safetensors"
    fill(made, fixture.state(), their_name)
    return made


@torch.no_grad()
def test_features_maps_and_scores(fixture, method):
    compared = method.eval().compare(fixture.tensor("img"))
    assert_close(compared.patches_TPD, fixture.tensor("eval_fused"))
    assert_close(compared.prototypes_TMD, fixture.tensor("eval_prototypes"))
    features = compared.features
    for group, (target, decoded) in enumerate(zip(features.teacher, features.decoder, strict=True)):
        assert_close(target, fixture.tensor(f"eval_en{group}"))
        assert_close(decoded, fixture.tensor(f"eval_de{group}"))
        assert_close(cosine_distance(target, decoded), fixture.tensor(f"eval_cosdist{group}"))
    maps = method.token_maps(compared)
    assert_close(maps, fixture.tensor("eval_map_image_size"))
    blurred, scores = map_and_score_of_256(maps, fixture)
    assert_close(blurred, fixture.tensor("eval_map_256_blurred"))
    assert_close(scores, fixture.tensor("eval_image_score"))


@torch.no_grad()
def test_bottleneck_and_attention_to_prototypes(fixture, method):
    block, seen = method.decoder[0], {}
    method.bottleneck.register_forward_hook(lambda part, inputs, output: seen.update(eval_bottleneck=output))
    block.register_forward_hook(lambda part, inputs, output: seen.update(eval_decoder_block0=output))
    block.attn.register_forward_pre_hook(lambda part, inputs: seen.update(inputs=inputs))
    method.eval().compare(fixture.tensor("img"))
    tokens, prototypes = seen.pop("inputs")
    weights = block.attn.weights(block.attn.queries(tokens), block.attn.keys_and_values(prototypes)[0])
    assert_close(weights, fixture.tensor("eval_decoder_block0_attention"))
    assert len(seen) == 2
    for name, value in seen.items():
        assert_close(value, fixture.tensor(name))


@torch.no_grad()
def test_every_patch_and_its_nearest_prototype(fixture, method):
    compared = method.eval().compare(fixture.tensor("img"))
    distances, nearest = prototype_distances(compared.patches_TPD, compared.prototypes_TMD).min(dim=2)
    assert_close(distances, fixture.tensor("eval_prototype_distance"))
    assert torch.equal(nearest, fixture.tensor("eval_prototype_index"))
    assert distances.mean().item() == pytest.approx(fixture.outputs["eval_gather_loss"].item(), rel=1e-4)


def test_loss_and_gradients(fixture, method):
    loss = loss_and_gradients(method.train(), fixture.tensor("img"))
    assert loss.item() == pytest.approx(fixture.outputs["train_loss"].item(), rel=1e-4)
    assert_same_gradient_norms(method, fixture.facts["train_grad_norms"], their_name)


def test_the_loss_is_the_sum_of_its_two_parts(fixture, method):
    method.settings = method.settings.model_copy(update={"gather_weight": 0.0})
    cosine = loss_and_gradients(method.train(), fixture.tensor("img")).item()
    method.settings = method.settings.model_copy(update={"gather_weight": 1.0})
    both = loss_and_gradients(method, fixture.tensor("img")).item()
    assert cosine == pytest.approx(fixture.outputs["train_cos_loss"].item(), rel=1e-4)
    assert both - cosine == pytest.approx(fixture.outputs["train_gather_loss"].item(), rel=1e-4)


def test_gradients_of_the_gather_loss_alone(fixture, method):
    compared = method.train().compare(fixture.tensor("img"))
    gather = prototype_distances(compared.patches_TPD, compared.prototypes_TMD).min(dim=2).values.mean()
    (method.settings.gather_weight * gather).backward()  # theirs are of the weighted loss
    norms = fixture.facts["gather_only_grad_norms"]
    ours = {their_name(name): p.grad.norm().item() for name, p in method.named_parameters() if p.grad is not None}
    assert ours == pytest.approx(norms, rel=1e-3, abs=1e-6 * max(norms.values()))
