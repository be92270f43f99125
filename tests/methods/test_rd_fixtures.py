"""RD against what its authors' code computes."""

import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close, rebuild

from unimmad.config import TrainingSettings
from unimmad.methods.rd import RD, Features, RDSettings
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.method import StepFacts

NAMES = {
    "encoder.": "teacher.network.",
    "bn.conv1.": "embedding.from_stride_4.0.",
    "bn.bn1.": "embedding.from_stride_4.1.",
    "bn.conv2.": "embedding.from_stride_4.3.",
    "bn.bn2.": "embedding.from_stride_4.4.",
    "bn.conv3.": "embedding.from_stride_8.0.",
    "bn.bn3.": "embedding.from_stride_8.1.",
    "bn.bn_layer.": "embedding.narrow.",
    "decoder.layer1.": "student.stages.0.",
    "decoder.layer2.": "student.stages.1.",
    "decoder.layer3.": "student.stages.2.",
}
NEVER_USED = ("encoder.layer4.", "encoder.fc.", "bn.conv4.", "bn.bn4.")
SIGMA = 4.0
KERNEL = 33


def our_name(theirs: str) -> str:
    prefix = next(prefix for prefix in NAMES if theirs.startswith(prefix))
    return (NAMES[prefix] + theirs.removeprefix(prefix)).replace(".upsample.", ".downsample.")


@pytest.fixture(params=["RD", "RD_resnet18"], scope="module")
def fixture(request) -> PeerFixture:
    return PeerFixture.read(request.param)


@pytest.fixture(scope="module")
def method(fixture) -> RD:
    """With the authors' weights; everything of theirs that computes has its place."""
    facts = fixture.facts
    made = RD(RDSettings(backbone=facts["arch"], image_size=facts["size"], backbone_weights="none"))
    weights = {
        our_name(name): rebuild(name, shape, facts["seed"])
        for name, shape in facts["shapes"].items()
        if not name.startswith(NEVER_USED) and not name.endswith("num_batches_tracked")
    }
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return made


def mean_loss(method: RD, compared: Features) -> torch.Tensor:
    count = len(compared.teacher[0])
    return method.token_losses(compared, StepFacts(torch.ones(count), TrainingSettings())).mean()


def cosine_distances(compared: Features) -> list[torch.Tensor]:
    return [
        1 - torch.cosine_similarity(*level, dim=1) for level in zip(compared.teacher, compared.student, strict=True)
    ]


@pytest.mark.parametrize("folded", [False, True], ids=["as loaded", "folded teacher"])
def test_features_losses_maps_and_scores_are_the_authors(fixture, method, folded):
    method.eval()
    method.folded_teacher = None
    if folded:
        method.freeze_teacher()
    step = fixture.facts["channel_step"]
    with torch.no_grad():
        compared = method.compare(fixture.tensor("img"))
        embedding_TChw = method.embedding(compared.teacher)
        maps_THW = method.token_maps(compared)
    assert_close(embedding_TChw[:, ::step], fixture.tensor("eval_embedding_sub"))
    for level, distance_Thw in enumerate(cosine_distances(compared)):
        assert_close(compared.teacher[level][:, ::step], fixture.tensor(f"eval_teacher{level + 1}_sub"))
        assert_close(compared.student[level][:, ::step], fixture.tensor(f"eval_student{level + 1}_sub"))
        assert_close(distance_Thw, fixture.tensor(f"eval_cosdist{level + 1}"))
    assert mean_loss(method, compared).item() == pytest.approx(fixture.outputs["eval_loss"].item(), rel=1e-4)
    assert_close(maps_THW, fixture.tensor("eval_map_raw"))
    blurred_THW = gaussian_blur(maps_THW, KERNEL, SIGMA, "mirror")
    assert_close(blurred_THW, fixture.tensor("eval_map"))
    assert_close(image_scores(blurred_THW, top_share=0), fixture.tensor("eval_image_score"))


# In float32 the gradients of the deeper network, random as it is, are a matter of rounding.
@pytest.mark.parametrize(
    ("fixture", "dtype", "tolerance"),
    [
        ("RD", torch.float64, 1e-5),
        ("RD_resnet18", torch.float64, 1e-5),
        ("RD_resnet18", torch.float32, 1e-3),
    ],
    indirect=["fixture"],
)
def test_a_training_step_has_the_authors_loss_statistics_and_gradients(fixture, method, dtype, tolerance):
    facts = fixture.facts
    reference = facts["float64_run"] if dtype is torch.float64 else facts
    method.folded_teacher = None
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train().to(dtype)
    try:
        compared = method.compare(fixture.tensor("img").to(dtype))
        loss = mean_loss(method, compared)
        loss.backward()
        for level, distance_Thw in enumerate(cosine_distances(compared)):
            assert_close(distance_Thw.detach(), fixture.tensor(f"train_cosdist{level + 1}"))
        assert loss.item() == pytest.approx(fixture.outputs["train_loss"].item(), rel=1e-4)
        ours = {name: p.grad.norm().item() for name, p in method.named_parameters() if p.grad is not None}
        theirs = {our_name(name): norm for name, norm in reference["train_grad_norms"].items()}
        assert ours == pytest.approx(theirs, rel=tolerance)
        state = method.state_dict()
        for name, norm in facts["train_running_stat_norms_after_one_step"].items():
            if not name.startswith(NEVER_USED):
                assert state[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-4)
    finally:
        method.zero_grad()
        method.float().load_state_dict(before)
