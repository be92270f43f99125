"""Banks that grow: what they take, and that no distance gets larger."""

from __future__ import annotations

import pytest
import torch

from unimmad.methods.banks import Banks, BankSettings
from unimmad.methods.patch_collection import BankName


def bank(scaling: str, neighbours: int = 1) -> Banks:
    settings = BankSettings(coreset="none", neighbours=neighbours)
    found = Banks(settings, 4, 1, scaling)
    generator = torch.Generator().manual_seed(0)
    for key in ("a", "b"):
        found.add([BankName("set/cup", 0)], [key], torch.rand(1, 40, 4, generator=generator))
    found.finish(lambda given: given)
    return found


@pytest.mark.parametrize(("scaling", "neighbours"), [("none", 1), ("deviation", 1), ("normal", 3)])
def test_no_distance_gets_larger_and_what_was_lacking_is_near(scaling, neighbours):
    banks = bank(scaling, neighbours)
    generator = torch.Generator().manual_seed(1)
    others_thwD = 2 * torch.rand(5, 6, 6, 4, generator=generator) - 0.5
    image_PD = torch.rand(50, 4, generator=generator)
    image_PD[:10] += 3  # what the bank lacks
    before, own_before = banks.scores(others_thwD, 0), banks.scores(image_PD[None, None], 0)
    rows_nD = banks.lacking_rows(image_PD, 0, 12)
    assert rows_nD.shape == (12, 4)
    banks.append(0, rows_nD)
    after, own_after = banks.scores(others_thwD, 0), banks.scores(image_PD[None, None], 0)
    assert len(banks.banks[0]) == 92
    assert (after <= before).all()
    assert (after < before).any()
    assert own_after[0, 0, :10].max() < 0.2 * own_before[0, 0, :10].min()


def test_an_image_that_a_bank_has_adds_nothing_and_other_features_are_refused():
    banks = bank("none")
    assert len(banks.lacking_rows(banks.banks[0][:20], 0, 128)) == 0
    assert len(banks.lacking_rows(torch.ones(30, 4), 0, 128)) == 1, "one patch stands for its equals"
    with pytest.raises(ValueError, match="none of 4 features"):
        banks.append(0, torch.zeros(2, 3))
