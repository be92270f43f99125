from __future__ import annotations

import pytest
import torch
from naive_moe import randomise
from torch.nn import functional as F

from unimmad.model.unimmad import InputEmbedding

SIZE = 8


def make(slots: int = 4, training: bool = False) -> InputEmbedding:
    module = InputEmbedding(slots, SIZE)
    randomise(module, seed=1)
    return module.train(training)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def by_definition(module, padded_BCHW):
    """From the zero-padded channels on."""
    x = padded_BCHW + module.embedding_CHW
    y = x
    for conv, norm in ((0, 1), (3, 4)):
        y = F.conv2d(y, module.stem[conv].weight, module.stem[conv].bias, padding=1)
        mean, variance = module.stem[norm].running_mean, module.stem[norm].running_var
        if module.training:
            mean = variance = None
        y = F.relu(
            F.batch_norm(y, mean, variance, module.stem[norm].weight, module.stem[norm].bias, training=module.training)
        )
    y = F.conv2d(y, module.stem[6].weight, module.stem[6].bias, padding=1)
    return y + F.conv2d(x, module.shortcut.weight, module.shortcut.bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("slots", "used"), [(4, [[0], [0, 1, 2], [0, 1, 2, 3]]), (4, [[1], [0, 3], [2]]), (2, [[0, 1], [1]]), (1, [[0]])]
)
def test_each_image_is_in_its_slot_and_zeros_are_in_the_others(slots, used, training):
    module = make(slots, training)
    tokens = [(sample, slot) for sample, own in enumerate(used) for slot in own]
    images_TCHW = images(len(tokens))
    padded = torch.zeros(len(used), 3 * slots, SIZE, SIZE)
    for image, (sample, slot) in zip(images_TCHW, tokens, strict=True):
        padded[sample, 3 * slot : 3 * slot + 3] = image
    sample_T, slot_T = torch.tensor(tokens).T
    output = module(images_TCHW, sample_T, slot_T, len(used))
    assert output.shape == (len(used), 3, SIZE, SIZE)
    torch.testing.assert_close(output, by_definition(module, padded), rtol=1e-4, atol=1e-5)


def test_paper_sizes_of_the_stem():
    shapes = {name: tuple(parameter.shape) for name, parameter in InputEmbedding(4, 256).named_parameters()}
    assert shapes["embedding_CHW"] == (12, 256, 256)
    assert shapes["stem.0.weight"] == (24, 12, 3, 3)
    assert shapes["stem.3.weight"] == (48, 24, 3, 3)
    assert shapes["stem.6.weight"] == (3, 48, 3, 3)
    assert shapes["shortcut.weight"] == (3, 12, 1, 1)
    assert {"stem.0.bias", "stem.3.bias", "stem.6.bias", "shortcut.bias"} <= set(shapes)


def test_a_new_embedding_has_the_papers_spread():
    torch.manual_seed(0)
    assert InputEmbedding(4, 64).embedding_CHW.std().item() == pytest.approx(0.02, rel=0.03)


def test_the_embedding_is_trained_and_images_pass_gradients():
    module, images_TCHW = make(), images(2).requires_grad_()
    module(images_TCHW, torch.tensor([0, 0]), torch.tensor([0, 2]), 1).square().sum().backward()
    assert (module.embedding_CHW.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert (images_TCHW.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_it_can_begin_as_the_sum_of_a_samples_images(training):
    module = make(training=training)
    module.begin_as_sum()
    images_TCHW = images(3)
    embedded_BCHW = module(images_TCHW, torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]), 2)
    expected_BCHW = torch.stack([images_TCHW[0], images_TCHW[1] + images_TCHW[2]])
    torch.testing.assert_close(embedded_BCHW, expected_BCHW)
