"""Nearest neighbours: those of the whole matrix of distances, without it."""

import pytest
import torch
from methods.largest_tensor import LargestTensor

from unimmad.methods.nearest import nearest_neighbours


def normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("block_bytes", [1, 300, 5000, 2**20])
def test_the_same_neighbours_as_of_the_whole_matrix(neighbours: int, block_bytes: int) -> None:
    queries_nD, bank_mD = normal(70, 6, seed=0), normal(90, 6, seed=1)
    distances_nk, indices_nk = nearest_neighbours(queries_nD, bank_mD, neighbours, block_bytes)
    whole_nm = torch.cdist(queries_nD.double(), bank_mD.double()).square()
    expected = whole_nm.topk(neighbours, dim=1, largest=False)
    assert indices_nk.tolist() == expected.indices.tolist()
    torch.testing.assert_close(distances_nk, expected.values.float())


@pytest.mark.parametrize("neighbours", [1, 5])
def test_rows_that_do_not_count_are_as_if_they_were_not_there(neighbours: int) -> None:
    queries_nD, bank_mD = normal(70, 6, seed=0), normal(90, 6, seed=1)
    among_m = torch.arange(90) % 3 == 0
    among_m[60:] = False
    distances_nk, indices_nk = nearest_neighbours(queries_nD, bank_mD, neighbours, 5000, among_m)
    expected_nk, places_nk = nearest_neighbours(queries_nD, bank_mD[among_m], neighbours)
    assert torch.equal(distances_nk, expected_nk)
    assert torch.equal(indices_nk, among_m.nonzero()[:, 0][places_nk])


def test_small_distances_between_large_features_are_exact() -> None:
    bank_mD = normal(50, 8, seed=2) + 1000
    queries_nD = bank_mD.roll(3, 0).clone()
    queries_nD[:, 0] += 0.25
    distances_nk, _ = nearest_neighbours(bank_mD, bank_mD, 1)
    assert distances_nk.count_nonzero() == 0
    expected_n = torch.cdist(queries_nD.double(), bank_mD.double()).square().amin(1)
    distances_nk, _ = nearest_neighbours(queries_nD, bank_mD, 1)
    torch.testing.assert_close(distances_nk[:, 0], expected_n.float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_no_matrix_of_all_distances_is_made(neighbours: int) -> None:
    queries_nD, bank_mD = normal(2000, 4, seed=0), normal(3000, 4, seed=1)
    with LargestTensor() as largest:
        nearest_neighbours(queries_nD, bank_mD, neighbours, block_bytes=200_000)
    assert 100_000 < largest.bytes <= 200_000  # all of them would take 24 MB


def test_as_many_neighbours_as_there_are() -> None:
    distances_nk, indices_nk = nearest_neighbours(torch.zeros(1, 1), torch.tensor([[3.0], [1.0], [2.0]]), 3)
    assert distances_nk.tolist() == [[1, 4, 9]]
    assert indices_nk.tolist() == [[1, 2, 0]]
