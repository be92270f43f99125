"""The paper model computes what the authors' implementation computes, on weights that anyone can rebuild.

Another folder of the same form (another seed and size) is taken from the environment variable UNIMMAD_FIXTURES.
"""

import copy
import json
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unimmad.checkpoint.released import load_released, our_name, translate
from unimmad.config import load_recipe
from unimmad.model.backends import convolution
from unimmad.model.folding import FoldedTeacher
from unimmad.model.inference import for_inference
from unimmad.model.loss import unimmad_loss
from unimmad.model.unimmad import UniMMAD

FOLDER = Path(os.environ.get("UNIMMAD_FIXTURES", Path(__file__).parents[1] / "fixtures"))


def rebuild(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """The fixtures' README: an entry is a fixed function of its name and shape."""
    r = np.random.default_rng(zlib.crc32(name.encode()) + seed).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "running_var":
        value = 1 + 0.1 * np.abs(r)
    elif last in ("running_mean", "bias"):
        value = 0.1 * r
    elif len(shape) == 1:
        value = 1 + 0.1 * r
    elif last == "weight":
        value = r * np.sqrt(2 / np.prod(shape[1:]))
    elif last == "experts":
        value = r
    elif "expert_bases" in name:
        value = r * np.sqrt(2 / np.prod(shape[2:]))
    elif last == "soft_expert":
        value = r * np.sqrt(2 / np.prod(shape[1:]))
    else:
        assert last == "input_embedding"
        value = 0.1 * r
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@dataclass
class Official:
    model: UniMMAD
    outputs: dict[str, np.ndarray]
    gradient_norms: dict[str, float]
    images_TCHW: torch.Tensor
    tokens_per_sample: list[int]
    token_order: np.ndarray

    def forward(self):
        slots = torch.from_numpy(self.token_order[:, 1])
        return self.model(self.images_TCHW, self.tokens_per_sample, slots)

    def loss(self, output):
        weights = torch.ones(len(self.images_TCHW))
        return unimmad_loss(output, weights, balance_scale=1.0, focal_gamma=2.0)


@pytest.fixture(scope="module")
def official() -> Official:
    torch.set_num_threads(2)  # as the fixtures were made: see conftest.py
    state = json.loads((FOLDER / "official_state.json").read_text())
    outputs = dict(np.load(FOLDER / "official_outputs.npz"))
    released = {name: rebuild(name, shape, state["seed"]) for name, shape in state["shapes"].items()}
    model = UniMMAD(load_recipe("paper", [f"model.image_size={state['size']}"]).model)
    load_released(model, translate(released))
    # Theirs lists tokens modality by modality, ours sample by sample.
    by_sample = np.lexsort(outputs["token_order"].T[::-1])
    order = outputs["token_order"][by_sample]
    for level in (1, 2, 3):
        outputs[f"eval_cosdist_level{level}"] = outputs[f"eval_cosdist_level{level}"][by_sample]
    images = torch.from_numpy(np.stack([outputs["specific_images"][b, m] for b, m in order]))
    counts = [int(count) for count in outputs["modality_num"]]
    return Official(model, outputs, state["train_grad_norms"], images, counts, order)


def assert_close_to_largest(ours: torch.Tensor, theirs: np.ndarray) -> None:
    difference = np.abs(ours.detach().numpy() - theirs).max()
    assert difference <= 1e-4 * np.abs(theirs).max(), f"{difference:.2e} against {np.abs(theirs).max():.2e}"


def test_inputs_are_the_specific_images_in_their_slots(official):
    placed = np.zeros_like(official.outputs["img"])
    for (sample, slot), image in zip(official.token_order, official.images_TCHW, strict=True):
        placed[sample, 3 * slot : 3 * slot + 3] = image
    np.testing.assert_array_equal(placed, official.outputs["img"])


def assert_evaluates_as_theirs(official: Official) -> None:
    with torch.no_grad():
        output = official.forward()
        loss = official.loss(output)
    for level, distance_Thw in enumerate(output.distances, start=1):
        assert_close_to_largest(distance_Thw, official.outputs[f"eval_cosdist_level{level}"])
    assert loss.parts["balance"].item() == pytest.approx(float(official.outputs["eval_lb_loss"]), rel=1e-4)
    assert loss.parts["reconstruction"].item() == pytest.approx(float(official.outputs["eval_recon_loss"]), rel=1e-4)
    assert_close_to_largest(official.model.maps(output), official.outputs["eval_anomaly_map"])


def test_evaluation_outputs(official):
    official.model.eval()
    assert_evaluates_as_theirs(official)


@pytest.mark.parametrize("transformed", [False, True], ids=["plain", "transformed"])
@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["no kernels kept", "all kept"])
def test_the_inference_forms_outputs(official, transformed, cache_bytes, monkeypatch):
    """With convolutions as these small maps have them, and as maps of the paper's size have them."""
    if transformed and not torch.backends.nnpack.is_available():
        pytest.skip("this PyTorch or processor has no NNPACK")
    choices = []
    for name in ("LEAST_POSITIONS", "LEAST_MULTIPLY_ADDS"):
        monkeypatch.setattr(convolution, name, 1 if transformed else 10**12)
    pays = convolution.transforms_pay
    monkeypatch.setattr(convolution, "transforms_pay", lambda *tensors: choices.append(pays(*tensors)) or choices[-1])
    fast = for_inference(copy.deepcopy(official.model), cache_bytes)
    assert_evaluates_as_theirs(replace(official, model=fast))
    assert any(choices) is transformed


@pytest.mark.parametrize("folded", [False, True], ids=["plain teacher", "folded teacher"])
def test_training_losses_and_gradient_norms(official, folded, monkeypatch):
    if folded:
        monkeypatch.setattr(official.model, "folded_teacher", FoldedTeacher(official.model.teacher))
    official.model.train()
    official.model.zero_grad()
    loss = official.loss(official.forward())
    loss.total.backward()
    assert loss.total.item() == pytest.approx(float(official.outputs["train_loss"]), rel=1e-4)
    assert loss.parts["balance"].item() == pytest.approx(float(official.outputs["train_lb_loss"]), rel=1e-4)
    assert loss.parts["reconstruction"].item() == pytest.approx(float(official.outputs["train_recon_loss"]), rel=1e-4)
    floor = 1e-6 * max(official.gradient_norms.values())
    ours = {name: parameter.grad for name, parameter in official.model.named_parameters()}
    compared = set()
    for name, norm in official.gradient_norms.items():
        our = our_name(name)
        assert our is not None
        gradient = ours[our]
        assert gradient is not None, f"{our} has no gradient"
        assert abs(float(gradient.double().norm()) - norm) <= max(1e-3 * norm, floor), name
        compared.add(our)
    trainable = {name for name, parameter in official.model.named_parameters() if parameter.requires_grad}
    assert compared == trainable
