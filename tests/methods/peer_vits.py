"""Vision transformers of any size under a name of timm's, and what the tests of the methods upon them share."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from methods.peer_fixtures import PeerFixture
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from unimmad.config import TrainingSettings
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.method import Method, StepFacts

ensure_torchvision_imports()
import timm  # noqa: E402
from timm.models import register_model  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


def known_to_timm(name: str, **sizes: Any) -> str:
    """``name``, by which timm builds a vision transformer of these sizes from now on."""

    def build(pretrained: bool = False, **given: Any) -> nn.Module:
        assert not pretrained
        return VisionTransformer(**{**sizes, "img_size": given.get("img_size", sizes["img_size"])})

    if not timm.is_model(name):
        build.__name__ = name
        register_model(build)
    return name


def tiny_vit() -> str:
    """24 channels, 2 heads, 4 blocks, patches of 4 pixels, a class token and 2 registers; made for 16 pixels."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2}
    return known_to_timm("tiny_vit_of_tests", **sizes, reg_tokens=2, no_embed_class=True)


def dinov2_of(fixture: PeerFixture, name: str) -> str:
    """The encoder of Dinomaly's and INP-Former's fixtures."""
    facts = fixture.facts
    return known_to_timm(
        name,
        img_size=facts["pos_embed_grid"] * facts["patch"],
        patch_size=facts["patch"],
        embed_dim=facts["embed_dim"],
        depth=facts["encoder_depth"],
        num_heads=facts["num_heads"],
        init_values=1.0,
        reg_tokens=facts["registers"],
        no_embed_class=True,
    )


def weights_file(folder: Path, state: dict[str, torch.Tensor]) -> str:
    save_file(state, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def fill(method: nn.Module, state: dict[str, torch.Tensor], theirs: Callable[[str], str]) -> None:
    """Give every trainable parameter the entry of its name at the authors'."""
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(state[theirs(name)])


def loss_and_gradients(method: Method, images: torch.Tensor, step: int = 0) -> torch.Tensor:
    """The loss of a batch of samples of one image; gradients are left in the parameters."""
    count = len(images)
    method.zero_grad()
    output = method(images, [1] * count, torch.zeros(count, dtype=torch.int64))
    loss = method.loss(output, StepFacts(torch.ones(count), TrainingSettings(), step=step)).total
    loss.backward()
    return loss.detach()


def assert_same_gradient_norms(method: nn.Module, norms: dict[str, float], theirs: Callable[[str], str]) -> None:
    """All of ``norms``, and no others, within 1e-3; below 1e-6 of the largest is rounding noise around zero."""
    noise = 1e-6 * max(norms.values())
    ours = {theirs(name): p.grad.norm().item() for name, p in method.named_parameters() if p.requires_grad}
    assert ours.keys() == norms.keys()
    wrong = {name: (ours[name], norm) for name, norm in norms.items() if abs(ours[name] - norm) > 1e-3 * norm + noise}
    assert not wrong


def map_and_score_of_256(maps: torch.Tensor, fixture: PeerFixture) -> tuple[torch.Tensor, torch.Tensor]:
    """What Dinomaly's and INP-Former's authors make of maps before they score them."""
    side = fixture.facts["resize_mask"]
    resized = F.interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    blurred = gaussian_blur(resized, kernel_size=5, sigma=4.0)
    return blurred, image_scores(blurred, fixture.facts["max_ratio"])


def gradients_of_two_ranks(method: Method, images: torch.Tensor, share_of_first: int, step: int) -> list[torch.Tensor]:
    """What data-parallel training makes of a batch of which the first rank has ``share_of_first`` images."""
    barrier = threading.Barrier(2, timeout=60)
    given: list[torch.Tensor | None] = [None, None]

    def on_rank(rank: int) -> list[torch.Tensor]:
        def global_sum(value: torch.Tensor) -> torch.Tensor:
            given[rank] = value.clone()
            barrier.wait()
            summed = given[0] + given[1]
            barrier.wait()
            return summed

        mine = images[:share_of_first] if rank == 0 else images[share_of_first:]
        count = len(mine)
        output = method(mine, [1] * count, torch.zeros(count, dtype=torch.int64))
        facts = StepFacts(torch.ones(count), TrainingSettings(), step=step, world_size=2, global_sum=global_sum)
        trainable = [parameter for parameter in method.parameters() if parameter.requires_grad]
        return list(torch.autograd.grad(method.loss(output, facts).total, trainable))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(on_rank, range(2))
    return [(a + b) / 2 for a, b in zip(first, second, strict=True)]


def assert_trains_as_one_rank(method: Method, images: torch.Tensor, step: int) -> None:
    """Two ranks with unequal shares come to the gradients of one with all."""
    shared = gradients_of_two_ranks(method, images, share_of_first=1, step=step)
    loss_and_gradients(method, images, step)
    alone = [parameter.grad for parameter in method.parameters() if parameter.requires_grad]
    largest = max(gradient.abs().max() for gradient in alone)
    assert all((a - b).abs().max() <= 1e-5 * largest for a, b in zip(shared, alone, strict=True))


def assert_teacher_is_frozen(method: Method, images: torch.Tensor) -> None:
    """In training, too: in eval mode, without gradient, and without what lies behind the last block used."""
    method.train()
    assert method.training
    assert not any(module.training for module in method.teacher.modules())
    loss_and_gradients(method, images)
    teacher = {f"teacher.{name}" for name, _ in method.teacher.named_parameters()}
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad == (name not in teacher)
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).any(), name
        else:
            assert parameter.grad is None, name


def assert_trains_in_bf16(method: Method, images: torch.Tensor) -> None:
    """Under autocast the loss is that of float32 to a few percent, and every gradient is there."""
    exact = loss_and_gradients(method.train(), images, step=700)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_and_gradients(method, images, step=700)
    torch.testing.assert_close(loss, exact, rtol=0.03, atol=0.0)
    assert loss != exact
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@torch.no_grad()
def assert_can_be_exported(method: Method) -> None:
    """With two modalities and any number of samples."""
    fixed = method.with_fixed_modalities([0, 1])
    size = method.image_size
    two, three = (torch.randn(count, 2, 3, size, size) for count in (2, 3))
    program = torch.export.export(fixed, (two,), dynamic_shapes=({0: torch.export.Dim("samples", min=1, max=64)},))
    torch.testing.assert_close(program.module()(three), fixed(three))


@torch.no_grad()
def assert_joins_maps(method: Method, images: torch.Tensor) -> None:
    """The maps of a sample's first two images of three are joined by the root of the sum of squares."""
    method.eval()
    slots = torch.tensor([0, 1, 0])
    apart = method.maps(method(images, [1, 1, 1], slots))
    joined = method.maps(method(images, [2, 1], slots))
    assert joined.shape == (2, method.image_size, method.image_size)
    torch.testing.assert_close(joined[0], (apart[0].square() + apart[1].square()).sqrt())
    torch.testing.assert_close(joined[1], apart[2])
    assert (joined >= 0).all()
    assert (joined > 0).any()
