"""MambaAD as a method: what its settings refuse, what is frozen, how modalities join, what is trained."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from unimmad.config import TrainingSettings
from unimmad.methods.mambaad import MambaAD, MambaADSettings
from unimmad.model.method import StepFacts

SMALL = {"image_size": 64, "backbone": "resnet18", "backbone_weights": "none", "depths": (2, 2, 2, 2)}


@pytest.fixture(scope="module")
def method() -> MambaAD:
    torch.manual_seed(0)
    return MambaAD(MambaADSettings(**SMALL))


def images(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of 32"),
        ({"image_size": 32}, "image_size 32 is not a multiple of 32, 64 or more"),
        ({"image_size": 96}, "image_size 96 makes grids of 3 to 24.*power of two"),
        ({"image_size": 192, "scan_type": "zorder"}, "image_size 192 makes grids of 6 to 48"),
        ({"depths": (3, 5, 6, 3)}, "depths: .*multiple of 2 or 3, not 5"),
        ({"depths": (3, 4, 6)}, "depths"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"scan_type": "spiral"}, "scan_type"),
        ({"states": 16}, "states"),
    ],
)
def test_settings_refuse_what_cannot_be(change, message):
    with pytest.raises(ValidationError, match=message):
        MambaADSettings(**{**SMALL, **change})


@pytest.mark.parametrize("scan_type", ["zigzag", "scan", "sweep"])
def test_orders_that_fill_any_grid_take_any_multiple_of_32(scan_type):
    assert MambaADSettings(image_size=96, scan_type=scan_type).image_size == 96


def test_the_defaults_are_the_authors():
    settings = MambaADSettings()
    assert settings.model_dump() == {
        "image_size": 256,
        "modality_slots": 4,
        "backbone": "resnet34.bt_in1k",
        "backbone_weights": "imagenet",
        "depths": (3, 4, 6, 3),
        "drop_path": 0.2,
        "scan_type": "hilbert",
    }


def test_a_backbone_whose_channels_do_not_double_is_refused():
    with pytest.raises(ValueError, match=r"model\.backbone: mobilenetv2_100 has .* channels .* double"):
        MambaAD(MambaADSettings(**{**SMALL, "backbone": "mobilenetv2_100"}))


def test_the_teacher_stays_frozen_and_in_eval_mode(method):
    method.train()
    assert method.decoder.training
    assert not any(module.training for module in method.teacher.modules())
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method(images(2), [1, 1], torch.zeros(2, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


def test_a_step_reaches_every_trainable_parameter(method):
    method.train()
    facts = StepFacts(torch.ones(3), TrainingSettings())
    method.loss(method(images(3), [2, 1], torch.tensor([0, 1, 0])), facts).total.backward()
    missing = [name for name, value in method.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing
    assert all(value.grad.isfinite().all() for value in method.parameters() if value.requires_grad)


def test_steps_lower_the_loss(method):
    method.train()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([value for value in method.parameters() if value.requires_grad], 5e-3)
    losses = []
    for _ in range(3):
        loss = method.loss(
            method(images(2), [1, 1], torch.zeros(2, dtype=torch.int64)), StepFacts(torch.ones(2), TrainingSettings())
        ).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[1] < losses[0]


def test_a_token_s_loss_and_map_do_not_depend_on_its_neighbours(method):
    method.eval()
    with torch.no_grad():
        together, alone = method.compare(images(3)), method.compare(images(3)[1:2])
        facts = StepFacts(torch.ones(3), TrainingSettings())
        torch.testing.assert_close(method.token_losses(together, facts)[1:2], method.token_losses(alone, facts))
        torch.testing.assert_close(method.token_maps(together)[1:2], method.token_maps(alone), rtol=1e-4, atol=1e-5)


def test_a_sample_s_modalities_are_joined(method):
    method.eval()
    with torch.no_grad():
        tokens = method.maps(method(images(3), [1, 1, 1], torch.zeros(3, dtype=torch.int64)))
        joined = method.maps(method(images(3), [2, 1], torch.tensor([0, 1, 0])))
    torch.testing.assert_close(joined[0], (tokens[0] ** 2 + tokens[1] ** 2).sqrt(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(joined[1], tokens[2], rtol=1e-4, atol=1e-6)
    assert joined.shape == (2, 64, 64)
    assert joined.dtype == torch.float32


def test_rates_of_skipping_fall_towards_the_finest_stage():
    decoder = MambaAD(MambaADSettings(**{**SMALL, "depths": (3, 4, 6, 3)})).decoder
    rates = [
        [block.scans[0].drop_path.drop_prob for block in stage if hasattr(block, "scans")] for stage in decoder.stages
    ]
    every = np.linspace(0.2, 0, 16).tolist()
    assert rates == [every[:1], every[3:5], every[7:9], every[13:14]]
    assert [len(block.scans) for stage in decoder.stages for block in stage if hasattr(block, "scans")] == [
        3, 2, 2, 3, 3, 3
    ]  # fmt: skip


def test_the_teacher_takes_weights_from_a_file(tmp_path):
    source = MambaAD(MambaADSettings(**SMALL))
    file = tmp_path / "resnet18.safetensors"
    save_file(source.teacher.network.state_dict(), file)
    loaded = MambaAD(MambaADSettings(**{**SMALL, "backbone_weights": str(file)}))
    assert loaded.load_backbone() == "file resnet18.safetensors"
    for name, value in loaded.teacher.state_dict().items():
        assert torch.equal(value, source.teacher.state_dict()[name]), name


def test_bf16_autocast_keeps_scan_and_loss_in_float32(method):
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = method(images(2), [1, 1], torch.zeros(2, dtype=torch.int64))
        loss = method.loss(output, StepFacts(torch.ones(2), TrainingSettings())).total
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(value.grad.isfinite().all() for value in method.parameters() if value.requires_grad)


@pytest.mark.long
def test_a_program_for_any_batch_gives_the_same_maps(method):
    network = method.eval().with_fixed_modalities([0]).requires_grad_(False)
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(network, (images(2)[:, None],), dynamic_shapes=(batch,))
        torch.testing.assert_close(program.module()(images(3)[:, None]), network(images(3)[:, None]))
