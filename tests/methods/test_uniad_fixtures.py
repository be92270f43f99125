"""UniAD against what its authors' code computes."""

import re

import numpy as np
import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close, rebuild

from unimmad.config import TrainingSettings
from unimmad.methods.uniad import Features, UniAD, UniADSettings, jittered
from unimmad.model.anomaly_map import image_scores
from unimmad.model.method import StepFacts

RENAMED = {
    r"pos_embed\.row_embed\.weight": "row_embedding",
    r"pos_embed\.col_embed\.weight": "column_embedding",
    r"transformer\.decoder\.norm": "norm",
    r"transformer\.(..)coder\.layers\.": r"\1coder.",
    r"learned_embed\.weight": "queries_PE",
    r"(encoder\.\d+)\.self_attn": r"\1.attention.heads",
    r"(decoder\.\d+)\.self_attn": r"\1.to_memory.heads",
    r"multihead_attn": "to_previous.heads",
    r"linear1": "feedforward.0",
    r"linear2": "feedforward.3",
    r"(in|out)put_proj\.": r"\1put_projection.",
}
KEPT_STEPS = (8, 8, 4, 8)
"""Of the channels of each map of the backbone that the fixture holds."""
RECONSTRUCTION_STEP = 4
POOL = 16


def our_name(theirs: str) -> str:
    for pattern, name in RENAMED.items():
        theirs = re.sub(pattern, name, theirs)
    return theirs


@pytest.fixture(scope="module")
def fixture() -> PeerFixture:
    return PeerFixture.read("UniAD")


@pytest.fixture(scope="module")
def method(fixture) -> UniAD:
    """With the authors' weights and without dropout."""
    sizes = fixture.facts["reconstruction_args"]
    made = UniAD(
        UniADSettings(
            image_size=fixture.facts["size"],
            backbone_weights="none",
            strides=fixture.facts["outstrides"],
            hidden_dim=sizes["hidden_dim"],
            heads=sizes["nhead"],
            encoder_layers=sizes["num_encoder_layers"],
            decoder_layers=sizes["num_decoder_layers"],
            feedforward_dim=sizes["dim_feedforward"],
            dropout=0,
            neighbour_window=sizes["neighbor_mask"]["neighbor_size"][0],
            jitter_scale=sizes["feature_jitter"]["scale"],
        )
    )
    weights = {our_name(name): value for name, value in fixture.state("reconstruction.").items()}
    made.reconstruction.load_state_dict(weights)
    fill_backbone(made, fixture)
    return made


def fill_backbone(method: UniAD, fixture: PeerFixture) -> None:
    """The authors' port of the network has other names in the same order."""
    ours = {n: w for n, w in method.teacher.network.state_dict().items() if not n.endswith("num_batches_tracked")}
    theirs = [
        name
        for name in fixture.facts["shapes"]
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    ]
    assert theirs[len(ours)].startswith(f"backbone._blocks.{fixture.facts['outblocks'][-1] + 1}.")
    for (name, weight), official in zip(ours.items(), theirs, strict=False):
        assert name.rpartition(".")[2] == official.rpartition(".")[2]
        weight.copy_(rebuild(official, list(weight.shape), fixture.facts["seed"]))
        assert fixture.facts["shapes"][official] == list(weight.shape)


@torch.no_grad()
def test_the_backbones_maps_and_the_aligned_features_are_the_authors(fixture, method):
    method.eval()
    maps = method.teacher_maps(fixture.tensor("img"))
    for number, (features, step) in enumerate(zip(maps, KEPT_STEPS, strict=True), start=1):
        assert_close(features[:, ::step], fixture.tensor(f"eval_backbone{number}_sub"))
    aligned_TChw = method.aligned_features(fixture.tensor("img"))
    assert_close(aligned_TChw[:, ::RECONSTRUCTION_STEP], fixture.tensor("eval_feature_align_sub"))
    assert_close(method.token_maps(method.compare(fixture.tensor("img"))), fixture.tensor("eval_pred_from_image"))


@torch.no_grad()
def test_the_reconstruction_its_maps_and_scores_are_the_authors(fixture, method):
    method.eval()
    aligned_TChw = fixture.tensor("feature_align_given")
    transformer = method.reconstruction
    assert np.array_equal(transformer.blocked_PP, fixture.outputs["neighbor_mask_is_blocked"])
    assert_close(transformer.positions(), fixture.tensor("eval_pos_embed"))
    memory_TPE = transformer.encode(aligned_TChw.flatten(2).transpose(1, 2))
    assert_close(memory_TPE.transpose(0, 1), fixture.tensor("eval_encoder_out"))
    assert_close(transformer.decode(memory_TPE).transpose(0, 1), fixture.tensor("eval_decoder_out"))
    rebuilt_TChw = method.rebuild(aligned_TChw)
    assert_close(rebuilt_TChw[:, ::RECONSTRUCTION_STEP], fixture.tensor("eval_feature_rec_sub"))
    maps_THW = method.token_maps(Features(aligned_TChw, rebuilt_TChw))
    assert_close(maps_THW, fixture.tensor("eval_pred"))
    assert_close(image_scores(maps_THW, top_share=0, pool=POOL), fixture.tensor("eval_image_score_max"))
    assert_close(maps_THW.mean(dim=(1, 2)), fixture.tensor("eval_image_score_mean"))
    assert_close(maps_THW.std(dim=(1, 2), correction=0), fixture.tensor("eval_image_score_std"))


@pytest.mark.parametrize("kind", ["jitter", "nojitter"])
def test_a_training_step_has_the_authors_loss_and_gradients(fixture, method, kind):
    method.train()
    method.zero_grad()
    aligned_TChw = fixture.tensor("feature_align_given")
    tokens_TPC = aligned_TChw.flatten(2).transpose(1, 2)
    if kind == "jitter":
        noise_TPC = fixture.tensor("jitter_noise_given").transpose(0, 1)
        tokens_TPC = jittered(tokens_TPC, noise_TPC, method.settings.jitter_scale)
    rebuilt_TChw = method.reconstruction(tokens_TPC).transpose(1, 2).reshape_as(aligned_TChw)
    losses_T = method.token_losses(
        Features(aligned_TChw, rebuilt_TChw), StepFacts(torch.ones(len(aligned_TChw)), TrainingSettings())
    )
    losses_T.mean().backward()
    assert losses_T.mean().item() == pytest.approx(fixture.outputs[f"train_loss_{kind}"].item(), rel=1e-4)
    if kind == "jitter":
        assert_close(rebuilt_TChw[:, ::RECONSTRUCTION_STEP].detach(), fixture.tensor("train_jitter_feature_rec_sub"))
    ours = {name: weight.grad.norm().item() for name, weight in method.reconstruction.named_parameters()}
    theirs = {
        our_name(name.removeprefix("reconstruction.")): norm
        for name, norm in fixture.facts["train_grad_norms"][kind].items()
    }
    assert ours == pytest.approx(theirs, rel=1e-3)
