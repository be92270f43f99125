"""Coresets: equal to the rule written plainly, in bounded memory, the same whoever sees which sample."""

import numpy as np
import pytest
import torch
from methods.largest_tensor import LargestTensor

from unimmad.methods.coreset import (
    greedy_coreset,
    hash_of_key,
    projected,
    random_order,
    random_start_points,
    rows_to_keep,
)


def rows(count: int = 150, dims: int = 5) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(3))


def plain_greedy(rows_Nd: torch.Tensor, count: int, starts: list[int] | None) -> list[int]:
    """The rule, with the whole matrix in float64."""
    points = rows_Nd.double().numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    nearest = np.linalg.norm(distances, axis=1) if starts is None else distances[:, starts].mean(axis=1)
    taken: list[int] = []
    while len(taken) < count:
        taken.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distances[taken[-1]])
    return taken


@pytest.mark.parametrize("starts", [None, [7, 3, 90]])
@pytest.mark.parametrize("block_bytes", [1, 4000, 2**20])
def test_greedy_follows_the_rule_whatever_the_blocks(starts: list[int] | None, block_bytes: int) -> None:
    given = None if starts is None else torch.tensor(starts)
    assert greedy_coreset(rows(), 60, given, block_bytes).tolist() == plain_greedy(rows(), 60, starts)


@pytest.mark.parametrize("starts", [None, torch.arange(10)])
def test_no_matrix_of_all_distances_is_made(starts: torch.Tensor | None) -> None:
    rows_Nd = rows(3000, 2)
    with LargestTensor() as largest:
        greedy_coreset(rows_Nd, 5, starts, block_bytes=100_000)
    assert 50_000 < largest.bytes <= 100_000  # all of them would take 36 MB


def test_no_patch_is_taken_twice_not_even_among_equals() -> None:
    same = torch.zeros(20, 3)
    assert sorted(greedy_coreset(same, 20).tolist()) == list(range(20))


@pytest.mark.parametrize("count", [0, 21])
def test_a_coreset_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"a coreset of {count} of 20 patches"):
        greedy_coreset(torch.zeros(20, 3), count)


def test_how_many_are_kept() -> None:
    assert rows_to_keep(864, 0.1, None) == 86
    assert rows_to_keep(864, 0.1, 50) == 50
    assert rows_to_keep(864, 0.1, 1000) == 86
    assert rows_to_keep(5, 0.1, None) == 1


def test_the_projection_is_a_new_linear_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix_Dd = projected(torch.eye(400), 64, generator)
    bound = 400**-0.5
    assert matrix_Dd.shape == (400, 64)
    assert 0.99 * bound < matrix_Dd.abs().max() <= bound
    assert abs(matrix_Dd.std() - bound / 3**0.5) < 0.01 * bound
    rows_Nd = rows(10, 64)
    assert projected(rows_Nd, 64, generator) is rows_Nd


def test_what_is_drawn_leaves_the_process_s_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()  # type: ignore[index]
    generator = torch.Generator().manual_seed(1)
    starts = random_start_points(30, 10, generator)
    projected(rows(), 3, generator)
    random_order(hash_of_key("a"), 5, 0)
    assert len(set(starts.tolist())) == 10
    assert random_start_points(4, 10, generator).sort().values.tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]


def test_a_patch_s_random_number_depends_on_seed_sample_and_position_alone() -> None:
    first = random_order(hash_of_key("set/0"), 6, 0)
    assert torch.equal(first, random_order(hash_of_key("set/0"), 9, 0)[:6])
    assert not torch.isin(first, random_order(hash_of_key("set/1"), 6, 0)).any()
    assert not torch.isin(first, random_order(hash_of_key("set/0"), 6, 1)).any()
    # Written down: every version of NumPy and every machine must choose the same patches.
    assert first[:2].tolist() == [4160965523418199970, 2688189512639388296]


def test_random_numbers_are_spread_evenly() -> None:
    numbers = torch.cat([random_order(hash_of_key(str(key)), 256, 0) for key in range(100)])
    assert numbers.min() >= 0
    shares = torch.histc(numbers.double() / 2**63, bins=10, min=0, max=1) / len(numbers)
    assert (shares - 0.1).abs().max() < 0.01
