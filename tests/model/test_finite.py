"""NaN and infinity in tensors of any type are found, and large numbers are not taken for them."""

from __future__ import annotations

import pytest
import torch

from unimmad.model.finite import all_finite, check_finite

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("place", [0, 12, 24])
def test_one_nan_is_found(dtype, place):
    tensor = torch.ones(25).index_fill(0, torch.tensor(place), torch.nan).to(dtype)
    assert not all_finite(tensor)
    with pytest.raises(ValueError, match=r"^a file: b holds values that are NaN or infinite; use other weights$"):
        check_finite({"a": torch.ones(25).to(dtype), "b": tensor}, "a file")


@pytest.mark.parametrize("values", [[torch.inf, 1.0], [-torch.inf, 1.0], [torch.inf, -torch.inf]])
def test_infinity_is_found(values):
    assert not all_finite(torch.tensor(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_whose_sum_is_infinite_are_finite(dtype):
    assert all_finite(torch.full((100,), torch.finfo(dtype).max, dtype=dtype))


def test_integers_and_nothing_are_finite():
    assert all_finite(torch.tensor([2**62]))
    assert all_finite(torch.empty(0))
