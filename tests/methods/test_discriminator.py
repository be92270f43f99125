"""Anomalies drawn onto normal images, and the network that learns from them what an anomaly's distances look like."""

import numpy as np
import pytest
import torch

from unimmad.data.drawn_anomalies import drawn_anomaly
from unimmad.methods import discriminator
from unimmad.methods.discriminator import DrawnExamples, fitted_discriminator, logarithms
from unimmad.methods.image_sample import ImageSample
from unimmad.methods.patch_collection import BankName


@pytest.mark.parametrize("side", [32, 128])
def test_a_drawn_anomaly_changes_what_its_mask_marks_and_nothing_else(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image_CHW, other_CHW = torch.randn(2, 3, side, side, generator=generator)
    shares = []
    for seed in range(60):
        drawn_CHW, mask_HW = drawn_anomaly(image_CHW, other_CHW, np.random.default_rng(seed))
        assert drawn_CHW.dtype == torch.float32
        assert mask_HW.dtype == torch.bool
        changed_HW = (drawn_CHW - image_CHW).abs().mean(0)
        assert (changed_HW[mask_HW] > 0.1).all()
        assert (changed_HW[~mask_HW] <= 0.1).all()
        again = drawn_anomaly(image_CHW, other_CHW, np.random.default_rng(seed))
        assert torch.equal(again[0], drawn_CHW)
        assert torch.equal(again[1], mask_HW)
        shares.append(float(mask_HW.float().mean()))
    assert np.median(shares) > 0
    assert max(shares) <= 0.3


def made_examples(count: int = 60) -> DrawnExamples:
    """Anomalies double the distances of all levels in a square; noise doubles that of the finest level everywhere."""
    generator = torch.Generator().manual_seed(0)
    fine_Nhw, coarse_Nhw = 1 + torch.rand(count, 16, 16, generator=generator), torch.ones(count, 8, 8)
    covered_Nhw = torch.zeros(count, 16, 16)
    covered_Nhw[::2, 4:8, 6:10] = 1
    fine_Nhw[::2, 4:8, 6:10] *= 2
    coarse_Nhw[::2, 2:4, 3:5] *= 2
    return DrawnExamples(logarithms([fine_Nhw, coarse_Nhw]), covered_Nhw)


def test_it_learns_where_anomalies_are_and_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 120)
    monkeypatch.setattr(discriminator, "BATCH", 8)
    monkeypatch.setattr(discriminator, "AVERAGED", 0.9)
    examples, before = made_examples(), torch.random.get_rng_state()
    network = fitted_discriminator(examples, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before), "others' random numbers stay as they were"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    ratios = [level_Nhw.exp() for level_Nhw in examples.logarithms_NLhw.unbind(1)]
    logits_Nhw = network(ratios)
    anomalous_Nhw = examples.covered_Nhw > 0
    assert logits_Nhw[anomalous_Nhw].median() > 0 > logits_Nhw[~anomalous_Nhw].median()
    again = fitted_discriminator(examples, seed=3)(ratios)
    torch.testing.assert_close(again, logits_Nhw)
    assert not torch.equal(fitted_discriminator(examples, seed=4)(ratios), logits_Nhw)


def test_examples_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 2)
    examples = made_examples()
    examples.logarithms_NLhw[:] = torch.nan
    with pytest.raises(ValueError, match="no discriminator can be fitted"):
        fitted_discriminator(examples, seed=3)


def test_the_same_images_are_kept_whatever_the_order_and_the_ranks() -> None:
    images = [(BankName("a", number % 2), f"key {number}", torch.full((3, 2, 2), float(number))) for number in range(9)]

    def kept(of_ranks: list[list[int]]) -> list[tuple[str, float]]:
        given: list[dict[str, torch.Tensor]] = []
        for rank in of_ranks[1:]:
            sample = ImageSample(4, seed=1)
            for number in rank:
                sample.add(*images[number])
            assert sample.gathered(lambda tensors: given.append(tensors) or {}) == []
        first = ImageSample(4, seed=1)
        for number in of_ranks[0]:
            first.add(*images[number])
        found = first.gathered(
            lambda tensors: {name: torch.cat([tensors[name], *(one[name] for one in given)]) for name in tensors}
        )
        return [(one.key, float(one.image_CHW[0, 0, 0])) for one in found]

    expected = kept([[*range(9)]])
    assert len(expected) == 4
    assert kept([[8, 7, 6], [0, 5, 1], [2, 4, 3]]) == expected
    assert kept([[], [*range(9)]]) == kept([[*range(9)], []]) == expected, "a rank may have seen nothing"
    assert kept([[]]) == []
