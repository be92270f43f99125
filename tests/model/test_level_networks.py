"""Vision transformers as teacher and encoder: which levels they give, and UniMMAD and its searches upon them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards
from methods.peer_vits import tiny_vit
from methods.test_memory_bank import Sample, collect, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference import ReferenceUniMMAD
from unimmad import Detector
from unimmad.cli import export
from unimmad.config import ModelSettings, TrainingSettings, load_recipe, parse_recipe
from unimmad.methods.level_maps import harmonic_mean
from unimmad.methods.level_search_method import LevelSearchMethod, LevelSearchMethodSettings
from unimmad.methods.registry import METHOD_SETTINGS, build_method, new_model
from unimmad.methods.searching import SearchingSettings, SearchingUniMMAD
from unimmad.model.backends.activation_checkpointing import recompute_activations
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.level_networks import ViTLevels, level_strides
from unimmad.model.method import StepFacts
from unimmad.model.unimmad import UniMMAD

ensure_torchvision_imports()
import timm  # noqa: E402

COUNTS, SLOTS = (2, 1), torch.tensor([0, 1, 1])
SIZE = 20
"""Five patches of four pixels a side: more than the bottleneck halves evenly."""
SMALL = {
    **{"image_size": SIZE, "backbone": tiny_vit(), "backbone_weights": "none", "modality_slots": 2},
    **{"level_blocks": ((0, 2), (3,)), "fcm_dim": 48, "bottleneck_dim": 64, "embed_dim": 16},
    **{"decoder_planes": (8, 8), "decoder_blocks": (1, 2), "leaders": 4, "base_experts": 2, "initial_leader_std": 2.0},
}


def model_with(**changes: object) -> UniMMAD:
    torch.manual_seed(3)
    model = UniMMAD(ModelSettings.model_validate(SMALL | changes))
    model.encoder.load_state_dict(model.teacher.state_dict())
    return model


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4))


def test_a_level_is_its_blocks_mean_over_squares_of_patches_without_the_tokens_before_them() -> None:
    torch.manual_seed(0)
    network = ViTLevels(tiny_vit(), [(0, 2), (3,), (1, 3)], [1, 1, 2], 24, "timm").eval()
    whole = timm.create_model(tiny_vit(), img_size=24).eval()
    whole.load_state_dict(network.network.state_dict(), strict=False)
    maps = network(images(size=24))
    with torch.no_grad():
        blocks = [tokens[:, 3:] for tokens in _outputs(whole, images(size=24))]
    means = [(blocks[0] + blocks[2]) / 2, blocks[3], (blocks[1] + blocks[3]) / 2]
    expected = [mean.unflatten(1, (6, 6)).permute(0, 3, 1, 2) for mean in means]
    expected[2] = expected[2].unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5))
    assert (network.channels, network.strides) == ((24,) * 3, (4, 4, 8))
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert (ours < 0).any(), "tokens have both signs"
    assert maps[0].requires_grad, "the encoder is trained"


def _outputs(whole: nn.Module, images_NCHW: Tensor) -> list[Tensor]:
    """Of every block, by hooks: class token and registers come first."""
    given: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: given.append(output)) for block in whole.blocks]
    whole(images_NCHW)
    for hook in hooks:
        hook.remove()
    return given


@pytest.mark.parametrize("changes", [{}, {"level_pools": (1, 4), "image_size": 48}], ids=["one stride", "two strides"])
def test_unimmad_upon_it_is_the_reference_and_trains(changes: dict[str, object]) -> None:
    model = model_with(**changes)
    assert model.encoder.strides == level_strides(model.settings)
    given = images(size=model.image_size), COUNTS, SLOTS
    reference = ReferenceUniMMAD(model.eval())
    with torch.no_grad():
        ours, theirs = model(*given), reference(*given)
        torch.testing.assert_close(model.maps(ours), reference.maps(theirs), rtol=1e-4, atol=1e-5)
        fast = model_with(**changes).inference_form(2**20)
        torch.testing.assert_close(fast.maps(fast(*given)), model.maps(ours), rtol=1e-4, atol=1e-4)
        fixed = model_with(**changes).with_fixed_modalities((0, 1))
        torch.testing.assert_close(fixed(given[0][None, :2]), model.maps(ours)[:1], rtol=1e-4, atol=1e-4)
    facts = StepFacts(torch.ones(3), TrainingSettings())
    optimizer = torch.optim.Adam([p for p in model.train().parameters() if p.requires_grad], 2e-3)
    model.freeze_teacher()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.loss(model(*given), facts)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.parts["reconstruction"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(reference.teacher.parameters(), model.teacher.parameters(), strict=True)
    )


def test_recomputed_activations_of_its_blocks_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = model_with()
        if recompute:
            without = sum(1 for _ in model.encoder.network.blocks)
            assert recompute_activations(model) > without
        model.loss(model(images(), COUNTS, SLOTS), StepFacts(torch.ones(3), TrainingSettings())).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("backbone", [{}, {"backbone": "resnet10t", "image_size": 32, "level_blocks": ()}])
def test_a_frozen_encoder_stays_the_teacher_while_gradients_pass_through_it(backbone: dict[str, object]) -> None:
    planes = {} if not backbone else {"decoder_planes": (8, 8, 8), "decoder_blocks": (1, 1, 1)}
    model = model_with(encoder="frozen", **backbone, **planes).train()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model.loss(
        model(images(size=model.image_size), COUNTS, SLOTS), StepFacts(torch.ones(3), TrainingSettings())
    ).total.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.encoder.parameters())
    assert model.input_embedding.embedding_CHW.grad.any()


def test_search_alone_and_beside_it_see_the_same_levels() -> None:
    """Without a training step UniMMAD's is the search alone, and its exported form gives the same."""
    generator = torch.Generator().manual_seed(1)
    samples = [
        Sample(f"a/{number}", "a", (0, 1), torch.randn(2, 3, SIZE, SIZE, generator=generator)) for number in range(4)
    ]
    searched = {key: SMALL[key] for key in ("image_size", "backbone", "modality_slots", "level_blocks")}
    alone = LevelSearchMethod(LevelSearchMethodSettings.model_validate(searched | {"patches": 40})).eval()
    beside = SearchingUniMMAD(SearchingSettings.model_validate(SMALL | {"search": {"patches": 40}})).eval()
    alone.teacher.load_state_dict(beside.teacher.state_dict())
    test = samples[3:]
    maps = []
    with torch.no_grad():
        for method in (alone, beside):
            method.begin(0)
            collect(method, samples[:3])  # type: ignore[arg-type]
            method.finish(lambda given: given)
            maps.append(method.maps(method(*tokens(test))))
            fixed = method.with_fixed_modalities((0, 1))
            torch.testing.assert_close(fixed(test[0].images_MCHW[None]), maps[-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*maps)
    level = alone.teacher(test[0].images_MCHW)[1]
    means_PC = F.avg_pool2d(level, 3, 1, 1).permute(0, 2, 3, 1).flatten(0, 2)
    banks = alone.search.banks[1]
    nearest = []
    for slot, queries_PC in enumerate(means_PC.chunk(2)):
        place = banks.names.index(("a", slot))
        nearest.append(torch.cdist(queries_PC / banks.deviations[place], banks.banks[place]).amin(1))
    ratios, _ = alone.search.ratios(alone.teacher(test[0].images_MCHW), ["a", "a"], [0, 1])
    torch.testing.assert_close(ratios[1].flatten(1), torch.stack(nearest), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps[0], harmonic_mean(ratios, SIZE).sum(0, keepdim=True))


RECIPE = {
    "name": "vit",
    "model": {key: value for key, value in SMALL.items() if key not in ("backbone", "image_size")}
    | {
        "backbone": "test_vit",
        "image_size": 48,
        "level_blocks": [[0], [1]],
        "kernel_sizes": [3],
        "decoder_blocks": [1, 1],
    },
    "evaluation": {"blur_sigma_at_256": 8},
}


@pytest.mark.long
def test_an_exported_file_gives_the_detectors_scores(tmp_path: Path) -> None:
    """At 3 x 3 patches, which the bottleneck does not halve evenly."""
    shards = hand_made_shards(tmp_path / "shards", ["solids"])
    checkpoint, _ = hand_made_checkpoint(tmp_path / "run", parse_recipe(RECIPE, "test"), [shards])
    target = tmp_path / "solids.onnx"
    words = ["--checkpoint", str(checkpoint), "--dataset", "solids", "--format", "onnx", "--target", str(target)]
    assert export.main(words) == 0
    generator = np.random.default_rng(7)
    given = {
        "rgb": generator.integers(0, 256, (48, 48, 3), dtype=np.uint8),
        "depth": generator.integers(20_000, 30_000, (48, 48), dtype=np.uint16),
    }
    of_checkpoint = Detector.from_checkpoint(checkpoint, data=[shards]).predict(given)
    of_export = Detector.open(target).predict(given)
    assert of_export.score == pytest.approx(of_checkpoint.score, rel=1e-4)
    np.testing.assert_allclose(of_export.map_HW, of_checkpoint.map_HW, rtol=1e-3, atol=1e-4)


def test_the_recipe_large_is_dinov2_with_registers_at_392_pixels() -> None:
    recipe = load_recipe("large", methods=METHOD_SETTINGS)
    with torch.device("meta"):
        model = build_method(recipe)
    assert isinstance(model, SearchingUniMMAD)
    assert (model.encoder.channels, model.encoder.strides) == ((768, 768), (14, 14))
    assert (len(model.teacher.network.blocks), model.teacher.network.num_prefix_tokens) == (10, 5)
    changes = {"backbone": "test_vit", "level_blocks": [[0, 1], [2, 3]], "image_size": 48, "backbone_weights": "none"}
    words = [f"model.{key}={value}" for key, value in (changes | {"fcm_dim": 32, "bottleneck_dim": 32}).items()]
    small, said = new_model(load_recipe("large", words, METHOD_SETTINGS))
    assert "none" in said
    assert small(images(size=48), COUNTS, SLOTS).distances[1].shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_size": 22}, "image_size: 22 is not a multiple of 4, .* nearest that are: 20 and 24"),
        ({"level_pools": (1, 2)}, r"level_pools: 2 does not divide the 5 x 5 patches .* that fit: 16 and 24$"),
        ({"level_blocks": ((0,), (4,))}, "block 4 of tiny_vit_of_tests .* blocks 0 to 3"),
        ({"level_blocks": ((2, 0), (3,))}, r"level_blocks: blocks \[2, 0\] of a level must ascend"),
        ({"level_pools": (2, 1)}, r"level_pools \[2, 1\] must not fall"),
        ({"level_pools": (1, 1, 1)}, r"level_pools \[1, 1, 1\] must be one number for each of the 2 groups"),
        ({"level_pools": (1, 3)}, "level_pools"),
        ({"decoder_planes": (8, 8, 8)}, r"decoder_planes \[8, 8, 8\] must be one number for each of the 2 levels"),
        ({"level_blocks": (), "level_pools": (1, 1)}, "level_pools are for a vision transformer: set level_blocks"),
        ({"backbone": "resnet18"}, "model.backbone: timm can't build 'resnet18' as a vision transformer"),
        (
            {
                **{"backbone": "vit_tiny_patch16_224", "level_blocks": (), "image_size": 64},
                **{"decoder_planes": (8, 8, 8), "decoder_blocks": (1, 1, 1)},
            },
            r"strides 4, 8 and 16 are needed \(of a vision transformer say the blocks, by model.level_blocks\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        build_method(parse_recipe({"name": "vit", "model": SMALL | changes}, "vit", METHOD_SETTINGS))
    assert "\n" not in str(raised.value)
