"""The form for fixed modalities has the numbers of the form for any."""

from __future__ import annotations

import naive_moe as naive
import pytest
import torch

from unimmad.config import load_recipe
from unimmad.model.fixed_modalities import FixedModalities, convolve_by_products
from unimmad.model.leaders import convolve_tokens
from unimmad.model.unimmad import UniMMAD


def random_model(banks: int, output: str = "whole") -> UniMMAD:
    model = UniMMAD(load_recipe("tiny", [f"model.banks={banks}", f"model.decoder_output={output}"]).model)
    naive.randomise(model, seed=banks)
    return model.eval()


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("modalities", [1, 3])
def test_products_over_shifted_maps_are_the_convolution(size, modalities):
    generator = torch.Generator().manual_seed(size)
    x_BEhw = torch.randn(2, 4, 6, 5, generator=generator)
    kernels_TEEkk = torch.randn(2 * modalities, 4, 4, size, size, generator=generator)
    expected = convolve_tokens(x_BEhw, kernels_TEEkk, [modalities] * 2)
    torch.testing.assert_close(convolve_by_products(x_BEhw, kernels_TEEkk, modalities), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "banks", "output"), [((0,), 1, "whole"), ((2, 0), 1, "residual"), ((0, 1, 2, 3), 2, "whole")]
)
@torch.no_grad()
def test_maps_are_those_of_the_model(slots, banks, output):
    model, count = random_model(banks, output), len(slots)
    images_BMCHW = torch.randn(3, count, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    output = model(images_BMCHW.flatten(0, 1), (count,) * 3, torch.tensor(slots * 3))
    expected = model.maps(output)
    torch.testing.assert_close(FixedModalities(model, slots)(images_BMCHW), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("slots", [(), (0, 0), (4,), (-1,)])
def test_slots_that_the_model_does_not_have_are_refused(slots):
    with pytest.raises(ValueError, match="lie in 0 to 3"):
        FixedModalities(random_model(1), slots)
