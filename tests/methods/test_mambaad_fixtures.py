"""MambaAD against what its authors' code computes: orders, fusion, decoder, gradients, and the whole network.

The decoder's finest maps are compared in float64, as their float32 ones are further than 1e-4 of the largest value from
what they themselves give in float64 (the fixtures' README): that distance is the limit there.
"""

import re
from copy import deepcopy
from functools import cache

import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close
from torch import Tensor, nn

from unimmad.config import TrainingSettings
from unimmad.methods.mamba_decoder import DirectionalScan, LocalAndScanned, MambaDecoder
from unimmad.methods.mambaad import Fusion, MambaAD, MambaADSettings, Reconstruction
from unimmad.methods.scan_orders import DIRECTIONS, direction_orders, scan_order
from unimmad.model.anomaly_map import cosine_distance, gaussian_blur, image_scores
from unimmad.model.method import StepFacts

FUSION_NAMES = {
    "conv1": "fine_down.0",
    "bn1": "fine_down.1",
    "conv21": "middle.0",
    "bn21": "middle.1",
    "conv2": "middle_down.0",
    "bn2": "middle_down.1",
    "conv31": "coarse.0",
    "bn31": "coarse.1",
    "convf": "joined.0",
    "bnf": "joined.1",
    "bn_layer": "narrow",
}
BLOCK_NAMES = {
    "conv1b5.0": "branches.0.0",
    "conv55.0": "branches.0.3",
    "conv1a5.0": "branches.0.6",
    "conv1b3.0": "branches.1.0",
    "conv77.0": "branches.1.3",
    "conv1a3.0": "branches.1.6",
    "finalconv11": "join",
}
SCAN_NAMES = {
    "ln_1": "norm",
    "self_attention.x_proj_weight": "scan.token_weight_KPD",
    "self_attention.dt_projs_weight": "scan.step_weight_KDr",
    "self_attention.dt_projs_bias": "scan.step_bias_KD",
    "self_attention.A_logs": "scan.log_rate_KDN",
    "self_attention.Ds": "scan.skip_KD",
    "self_attention.conv2d": "scan.conv",
    "self_attention": "scan",
}


def our_name(theirs: str) -> str | None:
    """The name of an entry of theirs in ``MambaAD``; None where nothing is computed with it."""
    network, _, rest = theirs.partition(".")
    if network == "net_t":
        return f"teacher.network.{rest}"
    if network == "mff_oce":
        first, _, rest = rest.partition(".")
        return f"fusion.{FUSION_NAMES[first]}.{rest}"
    if upsample := re.fullmatch(r"layers_up\.(\d)\.upsample\.(.+)", rest):
        return f"decoder.stages.{upsample[1]}.0.{upsample[2]}"
    parts = re.fullmatch(r"layers_up\.(\d)\.blocks\.(\d)\.(.+)", rest)
    assert parts is not None
    stage, block, rest = int(parts[1]), int(parts[2]), parts[3]
    prefix = f"decoder.stages.{stage}.{block + (stage > 0)}"
    if rest.startswith("conv33."):
        return None
    if scan := re.fullmatch(r"smm_blocks\.(\d)\.(.+)", rest):
        return f"{prefix}.scans.{scan[1]}.{renamed(scan[2], SCAN_NAMES)}"
    return f"{prefix}.{renamed(rest, BLOCK_NAMES)}"


def renamed(name: str, names: dict[str, str]) -> str:
    theirs = next(start for start in names if name == start or name.startswith(f"{start}."))
    return names[theirs] + name[len(theirs) :]


def our_state(fixture: PeerFixture, prefix: str = "") -> dict[str, Tensor]:
    state = {}
    for theirs, value in fixture.state().items():
        if (name := our_name(theirs)) is not None and name.startswith(prefix):
            merged = theirs.endswith(("A_logs", "Ds"))
            state[name.removeprefix(prefix)] = value.unflatten(0, (DIRECTIONS, -1)) if merged else value
    return state


def filled(module: nn.Module, fixture: PeerFixture, prefix: str = "") -> nn.Module:
    """Every entry of ours is one of theirs, and every one of theirs is used."""
    answer = module.load_state_dict(our_state(fixture, prefix), strict=False)
    assert not answer.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in answer.missing_keys)
    return module


def share(fixture: PeerFixture, name: str) -> float:
    """How close is close: two digits are stored of the rounding."""
    return max(1e-4, 1.05 * fixture.facts["float32_rounding"]["arrays_relative_to_largest_magnitude"][name])


@pytest.fixture(scope="module")
def parts() -> PeerFixture:
    return PeerFixture.read("MambaAD")


@cache
def decoder() -> MambaDecoder:
    fixture = PeerFixture.read("MambaAD")
    built = MambaDecoder(fixture.facts["dims_decoder"][0], fixture.facts["depths_decoder"], 8, "hilbert", 0.0)
    return filled(built, fixture, "decoder.")


@pytest.mark.parametrize("scan_type", ["hilbert", "zorder", "zigzag", "scan", "sweep"])
def test_orders(parts, scan_type):
    for side in (8, 16):
        if (name := f"scan_{scan_type}_{side}") in parts.outputs:
            assert torch.equal(scan_order(scan_type, side), parts.tensor(name).long())


def test_one_scan_in_eight_directions(parts):
    width = parts.tensor("ss2d_in").shape[3]
    scan = filled(DirectionalScan(width, direction_orders("hilbert", 8)), parts, "decoder.stages.0.0.scans.0.scan.")
    with torch.no_grad():
        assert_close(scan(parts.tensor("ss2d_in")), parts.tensor("eval_ss2d_out"))


def test_one_block_of_the_decoder(parts):
    block = decoder().stages[0][0]
    assert isinstance(block, LocalAndScanned)
    with torch.no_grad():
        ours = block(parts.tensor("decoder_in").permute(0, 2, 3, 1))
    assert_close(ours, parts.tensor("eval_layer0_out"))


def test_decoder(parts):
    with torch.no_grad():
        maps = deepcopy(decoder()).double()(parts.tensor("decoder_in").double())
    for level, ours in enumerate(maps, 1):
        name = f"eval_decoder_out{level}"
        assert_close(ours, parts.tensor(name), share(parts, name))


def test_fusion(parts):
    fusion = filled(Fusion((64, 128, 256)), parts, "fusion.").eval()
    levels = [parts.tensor(f"mff_in{level}") for level in (1, 2, 3)]
    with torch.no_grad():
        assert_close(fusion(levels)[:, ::8], parts.tensor("eval_mff_out_sub"))


def test_loss_and_gradients_of_the_decoder(parts):
    decoder().train()
    outputs = decoder()(parts.tensor("decoder_in"))
    targets = [parts.tensor(f"target{level}") for level in (1, 2, 3)]
    loss = MambaAD.token_losses(
        None, Reconstruction(targets, outputs), StepFacts(torch.ones(1), TrainingSettings())
    ).mean()
    assert loss.item() == pytest.approx(parts.outputs["train_loss"].item(), rel=1e-4)
    loss.backward()
    assert_gradient_norms(parts, "decoder.", decoder())


def test_loss_and_gradients_of_the_fusion(parts):
    fusion = filled(Fusion((64, 128, 256)), parts, "fusion.").train()
    loss = fusion([parts.tensor(f"mff_in{level}") for level in (1, 2, 3)]).square().mean()
    assert loss.item() == pytest.approx(parts.outputs["train_mff_mean_square"].item(), rel=1e-4)
    loss.backward()
    assert_gradient_norms(parts, "fusion.", fusion)


def assert_gradient_norms(fixture: PeerFixture, prefix: str, module: nn.Module) -> None:
    theirs = {our_name(name): norm for name, norm in fixture.facts["train_grad_norms"].items()}
    theirs = {name.removeprefix(prefix): norm for name, norm in theirs.items() if name and name.startswith(prefix)}
    ours = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
    assert ours.keys() == theirs.keys()
    noise = 1e-6 * max(theirs.values())
    for name, norm in theirs.items():
        if norm < noise:  # a bias before an InstanceNorm: rounding around zero
            assert ours[name] < noise, name
        else:
            assert ours[name] == pytest.approx(norm, rel=1e-3), name


@pytest.fixture(scope="module")
def whole() -> PeerFixture:
    return PeerFixture.read("MambaAD_full")


@pytest.fixture(scope="module")
def network(whole) -> MambaAD:
    settings = MambaADSettings(depths=whole.facts["depths_decoder"], scan_type=whole.facts["scan_type"])
    return filled(MambaAD(settings), whole).double().eval()


@pytest.fixture(scope="module")
def compared(whole, network) -> Reconstruction:
    image = whole.tensor("img_base_64").repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():
        return network.compare(image.double())


def test_features_and_reconstruction_of_the_whole_network(whole, compared):
    for level, step in ((1, 16), (2, 8), (3, 8)):
        target, output = compared.targets[level - 1], compared.outputs[level - 1]
        ours = {"teacher": target[:, ::step], "student": output[:, ::step]}
        for kind, value in ours.items():
            name = f"eval_{kind}{level}_sub"
            assert_close(value, whole.tensor(name), share(whole, name))
        name = f"eval_cosdist{level}"
        assert_close(cosine_distance(target, output), whole.tensor(name), share(whole, name))


def test_loss_map_and_score_of_the_whole_network(whole, network, compared):
    loss = network.token_losses(compared, StepFacts(torch.ones(1), TrainingSettings())).mean()
    assert loss.item() == pytest.approx(whole.outputs["eval_loss"].item(), rel=1e-4)
    raw = network.token_maps(compared)
    blurred = gaussian_blur(raw, kernel_size=33, sigma=4.0, border="mirror")
    assert_close(blurred, whole.tensor("eval_map"))
    assert_close(image_scores(blurred, top_share=0.0), whole.tensor("eval_image_score"))
