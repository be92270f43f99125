"""BatchNorm over all ranks against torch's own on the joined batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import Arrays, run_on_ranks
from torch import Tensor, nn

from unimmad.parallel.batchnorm import GlobalBatchNorm2d, synchronise_batchnorm

RANKS = 2
CHANNELS = 3
STEPS = 3
COUNTS = {"equal": (2, 2), "uneven": (5, 1), "an empty rank": (0, 3), "far from zero": (1, 3)}
"""Maps of each rank."""


def batches(case: str) -> list[Tensor]:
    """The joined batch of each step, another spread in each channel."""
    generator = torch.Generator().manual_seed(len(case))
    centre = 300.0 if case == "far from zero" else 0.5
    spread_C = torch.tensor([0.1, 1.0, 4.0])[:, None, None]
    shape = (sum(COUNTS[case]), CHANNELS, 4, 5)
    return [centre + spread_C * torch.randn(shape, generator=generator) for _ in range(STEPS)]


def maps_far_from_zero() -> list[Tensor]:
    """Of each rank, with means that differ; float32 rounds one near 300 by up to 1.5e-5."""
    generator = torch.Generator().manual_seed(0)
    spread_C = torch.tensor([0.1, 1.0, 4.0])[:, None, None]
    return [
        centre + spread_C * torch.randn(maps, CHANNELS, 16, 16, generator=generator)
        for centre, maps in ((300.0, 5), (301.0, 1))
    ]


def with_own_parameters(batchnorm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        batchnorm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        batchnorm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return batchnorm.train()


def results(batchnorm: nn.BatchNorm2d, case: str, part: slice) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of a share of every step's batch."""
    found: dict[str, Tensor] = {}
    for step, whole in enumerate(batches(case)):
        x_NCHW = whole[part].clone().requires_grad_()
        y_NCHW = batchnorm(x_NCHW)
        # A loss whose gradient differs everywhere and depends on the output.
        loss = (y_NCHW.square() * torch.sin(torch.arange(whole.numel()).reshape(whole.shape))[part]).sum()
        loss.backward()
        found |= {f"y{step}": y_NCHW, f"dx{step}": x_NCHW.grad}
    found |= {"dweight": batchnorm.weight.grad, "dbias": batchnorm.bias.grad}
    found |= {"mean": batchnorm.running_mean, "var": batchnorm.running_var, "seen": batchnorm.num_batches_tracked}
    return found


def on_rank(rank: int, world_size: int) -> dict[str, Tensor]:
    found = {}
    for case, counts in COUNTS.items():
        start = sum(counts[:rank])
        batchnorm = with_own_parameters(GlobalBatchNorm2d(CHANNELS))
        of_case = results(batchnorm, case, slice(start, start + counts[rank]))
        found |= {f"{case}/{name}": tensor for name, tensor in of_case.items()}
    exact = GlobalBatchNorm2d(CHANNELS, momentum=1.0)
    exact(maps_far_from_zero()[rank])
    found |= {"exact/mean": exact.running_mean, "exact/var": exact.running_var}
    batchnorm.eval()
    half = torch.randn(rank + 1, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(rank))
    torch.testing.assert_close(batchnorm(half), nn.BatchNorm2d.forward(batchnorm, half))
    bf16 = GlobalBatchNorm2d(CHANNELS)(half.bfloat16())
    assert bf16.dtype == torch.bfloat16
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[Arrays]:
    return run_on_ranks(on_rank, RANKS, tmp_path_factory.mktemp("batchnorm"))


@pytest.fixture(params=list(COUNTS))
def case(request) -> str:
    return request.param


@pytest.fixture
def reference(case) -> Arrays:
    found = results(with_own_parameters(nn.BatchNorm2d(CHANNELS)), case, slice(None))
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def tolerance(case: str) -> dict[str, float]:
    """float32 leaves fewer digits of a spread of 0.1 around 300."""
    return {"rtol": 1e-3, "atol": 2e-2} if case == "far from zero" else {"rtol": 1e-4, "atol": 1e-5}


def test_outputs_and_input_gradients_are_those_of_the_joined_batch(ranks, case, reference):
    for step in range(STEPS):
        for name in (f"y{step}", f"dx{step}"):
            joined = np.concatenate([rank[f"{case}/{name}"] for rank in ranks])
            np.testing.assert_allclose(joined, reference[name], **tolerance(case))


def test_parameter_gradients_add_up_to_those_of_the_joined_batch(ranks, case, reference):
    for name in ("dweight", "dbias"):
        total = sum(rank[f"{case}/{name}"] for rank in ranks)
        np.testing.assert_allclose(total, reference[name], **tolerance(case))


def test_running_statistics_are_the_same_everywhere_and_those_of_the_joined_batch(ranks, case, reference):
    for name in ("mean", "var", "seen"):
        for rank in ranks:
            np.testing.assert_allclose(rank[f"{case}/{name}"], reference[name], rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(rank[f"{case}/{name}"], ranks[0][f"{case}/{name}"])


def test_statistics_of_ranks_whose_means_differ_lose_no_digit(ranks):
    joined = torch.cat(maps_far_from_zero()).double()
    for rank in ranks:
        np.testing.assert_allclose(rank["exact/mean"], joined.mean(dim=(0, 2, 3)), rtol=2e-7)
        # Joined by Chan's formula from means that are rounded to float32, they are wrong by 3e-5.
        np.testing.assert_allclose(rank["exact/var"], joined.var(dim=(0, 2, 3)), rtol=5e-7)


def test_only_trained_batchnorm_is_replaced_with_what_it_holds():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3, eps=0.1, momentum=0.3)), nn.BatchNorm2d(3)
    )
    with_own_parameters(model[1][0]).running_mean.fill_(7.0)
    model[2].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    synchronise_batchnorm(model)
    trained = model[1][0]
    assert type(trained) is GlobalBatchNorm2d
    assert (trained.eps, trained.momentum) == (0.1, 0.3)
    assert type(model[2]) is nn.BatchNorm2d
    assert model.state_dict().keys() == before.keys()
    torch.testing.assert_close(dict(model.state_dict()), before)
