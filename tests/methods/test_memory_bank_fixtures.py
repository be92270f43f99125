"""The memory bank computes what PatchCore's authors' code does (fixture PatchCore)."""

from dataclasses import dataclass

import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close

from unimmad.methods.coreset import greedy_coreset, rows_to_keep
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings, PatchScores
from unimmad.methods.nearest import nearest_neighbours
from unimmad.model.anomaly_map import gaussian_blur

CASES = ("exact_nn1", "approx_nn1", "exact_nn5")


@dataclass(frozen=True)
class Theirs:
    """The fixture, and the memory bank with its teacher and all its training patches."""

    fixture: PeerFixture
    method: MemoryBank
    train_ND: torch.Tensor

    def chosen(self, case: str) -> torch.Tensor:
        """Our coreset's rows, by the projection and the start points that are given."""
        starts = self.fixture.tensor("approx_start_points") if case.startswith("approx") else None
        count = rows_to_keep(len(self.train_ND), self.fixture.facts["percentage"], None)
        return greedy_coreset(self.train_ND @ self.fixture.tensor("projection").T, count, starts)

    def scored(self, case: str) -> PatchScores:
        """The test images' patches, by the bank of our coreset."""
        settings = self.method.settings.model_copy(update={"neighbours": int(case[-1])})
        method = MemoryBank(settings).eval()
        state = self.method.state_dict() | {"banks.0": self.train_ND[self.chosen(case)]}
        method.restore({"banks": [["", 0]]})
        method.resize({name: tuple(tensor.shape) for name, tensor in state.items()})
        method.load_state_dict(state)
        images_TCHW = self.fixture.tensor("test")
        return method(images_TCHW, [1] * len(images_TCHW), torch.zeros(len(images_TCHW), dtype=torch.long))


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    fixture = PeerFixture.read("PatchCore")
    facts = fixture.facts
    settings = MemoryBankSettings(
        image_size=facts["size"],
        backbone=facts["backbone"],
        layer_dim=facts["pretrain_embed_dimension"],
        patch_dim=facts["target_embed_dimension"],
        bank_per="all",
    )
    method = MemoryBank(settings).eval()
    state = fixture.state("backbone.")
    wanted = [name for name in method.teacher.network.state_dict() if not name.endswith("num_batches_tracked")]
    method.teacher.network.load_state_dict({name: state[name] for name in wanted}, strict=False)
    return Theirs(fixture, method, method.describe_patches(fixture.tensor("train")).flatten(0, 2))


def test_layers_and_patches(theirs: Theirs) -> None:
    images_TCHW = theirs.fixture.tensor("test")
    with torch.no_grad():
        layer2, layer3 = theirs.method.teacher(images_TCHW)
    assert_close(layer2[:, ::8], theirs.fixture.tensor("test_layer2_sub"))
    assert_close(layer3[:, ::16], theirs.fixture.tensor("test_layer3_sub"))
    assert_close(theirs.method.describe_patches(images_TCHW).flatten(0, 2), theirs.fixture.tensor("test_embedding"))
    assert len(theirs.train_ND) == theirs.fixture.facts["n_train_patches"]
    assert_close(theirs.train_ND[::7], theirs.fixture.tensor("train_features_every_7th"))


@pytest.mark.parametrize("case", CASES)
def test_the_coreset_takes_the_same_patches_in_the_same_order(theirs: Theirs, case: str) -> None:
    assert theirs.chosen(case).tolist() == theirs.fixture.tensor(f"{case}_coreset_indices").tolist()


@pytest.mark.parametrize("case", CASES)
def test_nearest_patches(theirs: Theirs, case: str) -> None:
    bank_ND = theirs.train_ND[theirs.chosen(case)]
    distances_nk, indices_nk = nearest_neighbours(theirs.fixture.tensor("test_embedding"), bank_ND, int(case[-1]))
    assert_close(distances_nk.mean(1), theirs.fixture.tensor(f"{case}_patch_scores"))
    assert indices_nk[:, 0].tolist() == theirs.fixture.tensor(f"{case}_nn_indices").tolist()


@pytest.mark.parametrize("case", CASES)
def test_scores_and_maps(theirs: Theirs, case: str) -> None:
    scored = theirs.scored(case)
    assert_close(scored.scores_Thw.flatten(), theirs.fixture.tensor(f"{case}_patch_scores"))
    # The authors' image score is that of the worst patch.
    assert_close(scored.scores_Thw.amax((1, 2)), theirs.fixture.tensor(f"{case}_image_score"))
    maps_BHW = theirs.method.maps(scored)  # one modality: joining takes the root of the square
    assert_close(gaussian_blur(maps_BHW, 33, 4, border="mirror"), theirs.fixture.tensor(f"{case}_map"))
