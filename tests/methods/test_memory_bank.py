"""The memory bank: what it keeps, whoever collects it; how it scores; what it refuses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from unimmad.config import TrainingSettings
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings
from unimmad.model.method import StepFacts

SIZE = 32
PATCHES = 16
"""Of an image of that size."""


@dataclass(frozen=True)
class Sample:
    key: str
    class_name: str
    slots: tuple[int, ...]
    images_MCHW: torch.Tensor


def sample(number: int) -> Sample:
    """Class ``a`` has slots 0 and 1, ``b`` slot 0 alone; their images look unlike."""
    generator = torch.Generator().manual_seed(number)
    class_name, slots = ("a", (0, 1)) if number % 2 else ("b", (0,))
    images_MCHW = torch.rand(len(slots), 3, SIZE, SIZE, generator=generator)
    if class_name == "b":
        images_MCHW = images_MCHW * torch.linspace(-3, 3, SIZE)
    return Sample(f"{class_name}/{number}", class_name, slots, images_MCHW)


TRAIN = [sample(number) for number in range(6)]
FEW_FEATURES = {"layer_dim": 24, "patch_dim": 16, "projection_dim": 8}


@pytest.fixture(scope="module")
def teacher_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(MemoryBank(MemoryBankSettings(backbone="resnet18")).teacher.state_dict())


class Maker:
    """Memory banks whose teachers are all the same."""

    def __init__(self, teacher: dict[str, torch.Tensor]) -> None:
        self.teacher = teacher

    def __call__(self, **changes: Any) -> MemoryBank:
        values = {"image_size": SIZE, "backbone": "resnet18", "modality_slots": 2} | FEW_FEATURES | changes
        method = MemoryBank(MemoryBankSettings.model_validate(values)).eval()
        method.teacher.load_state_dict(self.teacher)
        return method

    def fitted(self, samples: Sequence[Sample] = TRAIN, seed: int = 0, **changes: Any) -> MemoryBank:
        method = self(**changes)
        method.begin(seed)
        collect(method, samples)
        method.finish(lambda given: given)
        return method


@pytest.fixture(scope="module")
def make(teacher_state: dict[str, torch.Tensor]) -> Maker:
    return Maker(teacher_state)


def tokens(samples: Sequence[Sample]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    return (
        torch.cat([sample.images_MCHW for sample in samples]),
        [len(sample.slots) for sample in samples],
        torch.tensor([slot for sample in samples for slot in sample.slots]),
    )


def collect(method: MemoryBank, samples: Sequence[Sample], batch: int = 1) -> None:
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        method.collect(*tokens(part), [sample.class_name for sample in part], [sample.key for sample in part])


def fit_on_ranks(ranks: Sequence[MemoryBank], calls: int = 2) -> None:
    """``finish`` of all ranks, each of which gathers so often, the last first: it does not wait for rank 0's answer,
    which is nothing."""
    given: list[list[dict[str, torch.Tensor]]] = []

    def keep(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given[-1].append(tensors)
        return {}

    for method in reversed(ranks[1:]):
        given.append([])
        method.finish(keep)
    numbers = iter(range(calls))

    def gather(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        call = next(numbers)
        of_all = [tensors, *(of_rank[call] for of_rank in reversed(given))]
        return {name: torch.cat([of_rank[name] for of_rank in of_all]) for name in tensors}

    ranks[0].finish(gather)
    assert next(numbers, None) is None
    assert all(len(of_rank) == calls for of_rank in given)


def hand_over(source: MemoryBank, target: MemoryBank) -> None:
    """As a checkpoint or rank 0 does."""
    state = source.state_dict()
    target.restore(json.loads(json.dumps(source.describe())))
    target.resize({name: tuple(tensor.shape) for name, tensor in state.items()})
    target.load_state_dict(state)


def assert_same_banks(method: MemoryBank, expected: MemoryBank) -> None:
    assert method.describe() == expected.describe()
    ours, theirs = method.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


CHOICES: dict[str, dict[str, Any]] = {
    "none": {"coreset": "none"},
    "random": {"coreset": "random", "coreset_share": 1.0, "patches": 20},
    "random_share": {"coreset": "random", "coreset_share": 0.5},
    "greedy": {"coreset": "greedy", "coreset_share": 0.3},
    "approximate": {"coreset": "approximate", "coreset_share": 0.3, "patches": 10},
    "joined": {"coreset": "random", "coreset_share": 1.0, "patches": 20, "features": "joined"},
    "for_all": {"coreset": "approximate", "bank_per": "all"},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_ranks_and_order_change_nothing(make: Maker, choice: str) -> None:
    expected = make.fitted(**CHOICES[choice])
    ranks = [make(**CHOICES[choice]) for _ in range(3)]
    for method, part in zip(ranks, ([5, 2], [], [0, 4, 3, 1]), strict=True):  # the second rank has nothing
        collect(method, [TRAIN[number] for number in part])
    fit_on_ranks(ranks)
    assert_same_banks(ranks[0], expected)
    for method in ranks[1:]:
        assert method.describe() == {"banks": []}
        hand_over(ranks[0], method)
        assert_same_banks(method, expected)


@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_bank_keeps(make: Maker, choice: str) -> None:
    method = make.fitted(**CHOICES[choice])
    names = [["", 0], ["", 1]] if choice == "for_all" else [["a", 0], ["a", 1], ["b", 0]]
    assert method.describe() == {"banks": names}
    for number, (class_name, slot) in enumerate(names):
        of_bank = [sample for sample in TRAIN if sample.class_name.startswith(class_name) and slot in sample.slots]
        images_TCHW = torch.stack([sample.images_MCHW[sample.slots.index(slot)] for sample in of_bank])
        candidates_ND = method.describe_patches(images_TCHW).flatten(0, 2)
        bank_ND = method.banks[number]
        if choice == "joined":
            bank_ND = bank_ND * method.deviations[number]
        counts = {
            "none": len(candidates_ND),
            "random": 20,
            "joined": 20,
            "greedy": int(0.3 * len(candidates_ND)),
            "approximate": min(10, int(0.3 * len(candidates_ND))),
            "for_all": int(0.1 * len(candidates_ND)),
        }
        if choice == "random_share":
            assert 0.25 < len(bank_ND) / len(candidates_ND) < 0.75
        else:
            assert len(bank_ND) == counts[choice]
        nearest = torch.cdist(bank_ND, candidates_ND, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert nearest.values.max() < 1e-4
        assert len(set(nearest.indices.tolist())) == len(bank_ND)
        assert not bank_ND.requires_grad


def test_features_are_divided_by_their_deviation_over_the_bank(make: Maker) -> None:
    method = make.fitted(coreset="random", coreset_share=1.0, patches=30, features="joined")
    for bank_ND in method.banks:
        deviations_D = bank_ND.std(0, correction=0)
        varies_D = deviations_D > 0
        torch.testing.assert_close(deviations_D[varies_D], torch.ones(int(varies_D.sum())))
        assert 192 < varies_D.sum() < 384  # behind a ReLU the random teacher has features that are always 0
        assert bank_ND.isfinite().all()


def test_constant_features_do_not_make_scores_nan(make: Maker) -> None:
    black = Sample("black", "b", (0,), torch.zeros(1, 3, SIZE, SIZE))
    method = make(coreset="none", features="joined", image_size=SIZE)
    for parameter in method.teacher.parameters():
        parameter.zero_()
    collect(method, [black])
    method.finish(lambda given: given)
    assert method.maps(method(*tokens([TRAIN[0]]))).isfinite().all()


def test_random_choices_differ_by_seed_and_are_the_same_for_all_modalities(make: Maker) -> None:
    settings = CHOICES["random"]
    method, other = make.fitted(**settings), make.fitted(**settings, seed=1)
    assert not torch.equal(method.banks[0], other.banks[0])
    images_TCHW, _, _ = tokens([sample for sample in TRAIN if sample.class_name == "a"])
    patches = method.describe_patches(images_TCHW)
    chosen = [
        torch.cdist(bank_ND, patches[slot::2].flatten(0, 2), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        for slot, bank_ND in enumerate(method.banks[:2])
    ]
    assert chosen[0].tolist() == chosen[1].tolist()


def test_batches_change_no_more_than_rounding(make: Maker) -> None:
    one, many = make.fitted(**CHOICES["random"]), make(**CHOICES["random"])
    collect(many, TRAIN, batch=4)
    many.finish(lambda given: given)
    for ours, theirs in zip(many.banks, one.banks, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_random_choice_never_keeps_more_than_its_share(make: Maker) -> None:
    # 4 banks at most of 20 patches of 16 features: 5.12 kB; everything would be 9.2 kB.
    method = make.fitted(**CHOICES["random"], max_bank_gb=5.2e-6)
    assert sum(len(bank_ND) for bank_ND in method.banks) == 60


def test_fitting_again_forgets_what_was(make: Maker) -> None:
    method = make.fitted(TRAIN[:1], coreset="none")
    collect(method, TRAIN)
    method.finish(lambda given: given)
    assert_same_banks(method, make.fitted(coreset="none"))


def patch_scores(method: MemoryBank, image_CHW: torch.Tensor, bank: int) -> torch.Tensor:
    """The rule, written plainly: [h, w]."""
    patches_hwD = method.describe_patches(image_CHW[None])[0]
    if len(method.deviations):
        patches_hwD = patches_hwD / method.deviations[bank]
    differences = patches_hwD.double()[:, :, None] - method.banks[bank].double()
    distances_hwN = differences.square().sum(-1)
    if method.settings.distance == "root":
        distances_hwN = distances_hwN.sqrt()
    return distances_hwN.sort(-1).values[..., : method.settings.neighbours].mean(-1).float()


TEST = [sample(number) for number in (11, 12, 13)]
SCORING: list[dict[str, Any]] = [
    {"coreset": "none"},
    {"coreset": "none", "neighbours": 3},
    {"coreset": "none", "neighbours": 3, "distance": "root"},
    CHOICES["joined"] | {"distance": "root"},
]


@pytest.mark.parametrize("settings", SCORING)
def test_scores_of_a_known_class(make: Maker, settings: dict[str, Any]) -> None:
    method = make.fitted(**settings)
    scores_Thw = method(*tokens(TEST), [sample.class_name for sample in TEST]).scores_Thw
    numbers = {("a", 0): 0, ("a", 1): 1, ("b", 0): 2}
    place = 0
    for test_sample in TEST:
        for slot, image_CHW in zip(test_sample.slots, test_sample.images_MCHW, strict=True):
            expected_hw = patch_scores(method, image_CHW, numbers[test_sample.class_name, slot])
            torch.testing.assert_close(scores_Thw[place], expected_hw, rtol=1e-4, atol=1e-6)
            place += 1


def test_an_unknown_class_is_that_of_the_nearest_bank(make: Maker) -> None:
    method = make.fitted(coreset="none")
    unknown = method(*tokens(TEST)).scores_Thw
    known = method(*tokens(TEST), [sample.class_name for sample in TEST]).scores_Thw
    for place, (number, image_CHW) in enumerate([(0, TEST[0].images_MCHW[0]), (0, TEST[1].images_MCHW[0])]):
        of_banks = [patch_scores(method, image_CHW, bank) for bank in (0, 2)]
        token = 2 * place
        expected_hw = min(of_banks, key=lambda scores_hw: float(scores_hw.mean()))
        torch.testing.assert_close(unknown[token], expected_hw, rtol=1e-4, atol=1e-6)
        assert number == 0
    assert torch.equal(unknown[1], known[1])  # of slot 1 there is one bank


def test_one_bank_for_all_classes_needs_no_class(make: Maker) -> None:
    method = make.fitted(coreset="none", bank_per="all")
    with_classes = method(*tokens(TEST), ["a", "never seen", "b"]).scores_Thw
    assert torch.equal(with_classes, method(*tokens(TEST)).scores_Thw)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("join", ["rss", "sum", "max"])
def test_modalities_are_joined_as_the_settings_say(make: Maker, join: str, align_corners: bool) -> None:
    method = make.fitted(coreset="none", join=join, align_corners=align_corners)
    output = method(*tokens(TEST))
    maps_BHW = method.maps(output)
    assert maps_BHW.shape == (3, SIZE, SIZE)
    large_THW = torch.nn.functional.interpolate(
        output.scores_Thw[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=align_corners
    )[:, 0]
    rules = {"rss": lambda maps: maps.square().sum(0).sqrt(), "sum": lambda maps: maps.sum(0)}
    rules["max"] = lambda maps: maps.amax(0)
    for map_HW, first, end in zip(maps_BHW, (0, 2, 3), (2, 3, 5), strict=True):
        torch.testing.assert_close(map_HW, rules[join](large_THW[first:end]))


def test_a_training_image_is_at_distance_0(make: Maker) -> None:
    method = make.fitted(coreset="none")
    assert method(*tokens(TRAIN[:1])).scores_Thw.max() == 0


def test_autocast_changes_no_number(make: Maker) -> None:
    method = make.fitted(coreset="none")
    plain = method.maps(method(*tokens(TEST)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.maps(method(*tokens(TEST))), plain)


@pytest.mark.parametrize(("features", "join"), [("patchcore", "rss"), ("joined", "sum"), ("joined", "max")])
def test_the_traced_form_gives_the_same_maps_for_any_batch(make: Maker, features: str, join: str) -> None:
    method = make.fitted(coreset="none", features=features, join=join, neighbours=2)
    both = [sample for sample in [*TEST, sample(15)] if len(sample.slots) == 2]
    images_BMCHW = torch.stack([sample.images_MCHW for sample in both])
    expected_BHW = method.maps(method(*tokens(both)))
    network = method.with_fixed_modalities((0, 1))
    any_batch = {"images_BMCHW": {0: torch.export.Dim("batch", min=1)}}
    traced = torch.export.export(network, (images_BMCHW[:2],), dynamic_shapes=any_batch).module()
    torch.testing.assert_close(traced(images_BMCHW), expected_BHW, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traced(images_BMCHW[:1]), expected_BHW[:1], rtol=1e-4, atol=1e-5)


def test_the_inference_form_gives_the_same_scores(make: Maker) -> None:
    method = make.fitted(coreset="none")
    expected = method(*tokens(TEST)).scores_Thw
    scores_Thw = method.inference_form(0)(*tokens(TEST)).scores_Thw
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in make().teacher.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in method.teacher.modules())
    torch.testing.assert_close(scores_Thw, expected, rtol=1e-3, atol=1e-5)


def test_statistics_of_a_backbone_without_weights_come_from_images(make: Maker) -> None:
    method = make()
    before = method.describe_patches(TRAIN[0].images_MCHW)
    method.calibrate_backbone([tokens(TRAIN)[0]])
    assert not torch.allclose(method.describe_patches(TRAIN[0].images_MCHW), before)
    assert not any(module.training for module in method.teacher.modules())


def test_what_was_collected_in_inference_mode_can_be_loaded_into(make: Maker) -> None:
    method = make(coreset="none")
    with torch.inference_mode():
        collect(method, TRAIN)
    method.finish(lambda given: given)
    assert not any(tensor.is_inference() for tensor in method.state_dict().values())
    assert_same_banks(method, make.fitted(coreset="none"))


def test_the_teacher_stays_as_it_is_and_nothing_trains(make: Maker) -> None:
    method = make.fitted(coreset="none").train()
    assert not any(module.training for module in method.teacher.modules())
    assert not any(parameter.requires_grad for parameter in method.parameters())
    with pytest.raises(RuntimeError, match="MemoryBank is fitted, not trained: it has no loss"):
        method.loss(method(*tokens(TEST)), StepFacts(torch.ones(5), TrainingSettings()))


@pytest.mark.parametrize("features", ["patchcore", "joined"])
def test_a_vision_transformer_s_blocks_take_the_place_of_layers(features: str) -> None:
    torch.manual_seed(0)
    settings = MemoryBankSettings(
        image_size=32, backbone="vit_tiny_patch16_224", blocks=(1, 2), features=features, coreset="none", patch_dim=48
    )
    method = MemoryBank(settings).eval()
    assert len(method.teacher.network.blocks) == 3  # none behind the last one used
    collect(method, TRAIN[:3])
    method.finish(lambda given: given)
    assert [tuple(bank_ND.shape) for bank_ND in method.banks] == [
        (4, method.features),
        (4, method.features),
        (8, method.features),
    ]
    assert method.features == (48 if features == "patchcore" else 2 * 192)
    output = method.inference_form(0)(*tokens(TRAIN[:1]))
    assert output.scores_Thw.shape == (1, 2, 2)
    assert method.maps(output).amax() < 1e-6 < method.maps(method(*tokens(TEST[1:2]))).amax()


def test_the_backbone_says_what_it_has(make: Maker) -> None:
    assert make(backbone_weights="none").load_backbone() == "none (random)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (16, 8)}, r"strides \[16, 8\] and blocks \[\] must ascend"),
        ({"strides": ()}, "strides"),
        ({"blocks": (3, 3)}, r"blocks \[3, 3\] must ascend"),
        ({"coreset": "none", "patches": 8000}, "patches: a bank of all patches"),
        ({"coreset": "kcenter"}, "coreset"),
        ({"coreset_share": 0}, "coreset_share"),
        ({"coreset_share": 1.1}, "coreset_share"),
        ({"max_bank_gb": 0}, "max_bank_gb"),
        ({"neighbours": 0}, "neighbours"),
        ({"neighbors": 1}, "neighbors"),
        ({"backbone": "hf-hub:a/b"}, "timm's own list"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MemoryBankSettings.model_validate(change)


def test_a_bank_larger_than_allowed_is_refused_while_it_is_collected_and_on_rank_0(make: Maker) -> None:
    settings = {"coreset": "none", "max_bank_gb": 4e-6}  # room for 62 patches
    remedy = r"more than the setting max_bank_gb, 4e-06: raise it, or .* a smaller patches .*, with coreset=random"
    with pytest.raises(ValueError, match=remedy):
        make.fitted(**settings)
    ranks = [make(**settings) for _ in range(2)]
    collect(ranks[0], TRAIN[:2])
    collect(ranks[1], TRAIN[2:4])
    with pytest.raises(ValueError, match=f"96 patches take .* {remedy}"):
        fit_on_ranks(ranks)


def test_no_samples_a_sample_twice_and_too_few_patches(make: Maker) -> None:
    with pytest.raises(ValueError, match="made of training samples, of which there are none"):
        make.fitted([])
    with pytest.raises(ValueError, match="class 'b', slot 0: a sample was collected twice"):
        make.fitted([TRAIN[0], TRAIN[0]], coreset="none")
    with pytest.raises(ValueError, match=r"class 'b', slot 0, has 1 patches, fewer than neighbours, 2"):
        make.fitted(TRAIN[:1], coreset="greedy", neighbours=2)


def test_samples_that_do_not_fit(make: Maker) -> None:
    method = make(coreset="none")
    images_TCHW, counts, slots_T = tokens(TRAIN[:1])
    with pytest.raises(ValueError, match="2 classes were given for 1 samples"):
        method.collect(images_TCHW, counts, slots_T, ["a", "b"], ["0"])
    with pytest.raises(ValueError, match="0 keys were given for 1 samples"):
        method.collect(images_TCHW, counts, slots_T, ["a"], [])
    with pytest.raises(ValueError, match="modality slot 2 is not one of the 2"):
        method.collect(images_TCHW, counts, slots_T + 2, ["a"], ["0"])
    with pytest.raises(ValueError, match=r"class '' is none of bank_per=class"):
        method.collect(images_TCHW, counts, slots_T, [""], ["0"])


def test_what_there_is_no_bank_of(make: Maker) -> None:
    method = make.fitted(coreset="none")
    images_TCHW, counts, slots_T = tokens(TEST[1:2])
    with pytest.raises(ValueError, match=r"no memory bank of class 'c' for modality slot 0; .* or name one of a, b"):
        method(images_TCHW, counts, slots_T, ["c"])
    with pytest.raises(ValueError, match=r"no memory bank of class 'b' for modality slot 1; .* or name one of a$"):
        method(images_TCHW, counts, slots_T + 1, ["b"])
    with pytest.raises(ValueError, match="no memory bank of any class for modality slot 0; fit it"):
        make()(images_TCHW, counts, slots_T)
    with pytest.raises(ValueError, match="0 classes were given for 1 samples"):
        method(images_TCHW, counts, slots_T, [])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "banks: Field required"),
        ({"banks": 3}, "banks: "),
        ({"banks": [["a"]]}, r"banks.0.*: "),
        ({"banks": [["a", -1]]}, r"banks.0.1: "),
        ({"banks": [["a", True]]}, r"banks.0.1: "),
        ({"banks": [["a", 0]], "more": 1}, "more: "),
        ({"banks": [["a", 0], ["a", 0]]}, "two banks of one class and slot"),
        ({"banks": [["a", 2]]}, "modality slot 2"),
        ({"banks": [["", 0]]}, "none of bank_per=class"),
    ],
)
def test_descriptions_that_cannot_be(make: Maker, description: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make().restore(description)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, r"0 tensors banks\.\* do not belong to 1 memory banks"),
        ({"banks.0": (4, 16), "banks.1": (4, 16)}, r"2 tensors banks\.\* do not belong to 1"),
        ({"banks.x": (4, 16)}, r"1 tensors banks\.\* do not belong to 1"),
        ({"banks.0": (4, 15)}, r"shape \[4, 15\], not \[patches, 16\]"),
        ({"banks.0": (64,)}, r"shape \[64\]"),
        ({"banks.0": (0, 16)}, "0 patches, fewer than neighbours"),
        ({"banks.0": (10**9, 16)}, "more than the setting max_bank_gb"),
        ({"banks.0": (4, 16), "deviations.0": (16,)}, r"1 tensors deviations\.\* do not belong to 0"),
    ],
)
def test_shapes_that_cannot_be(make: Maker, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    method = make()
    method.restore({"banks": [["a", 0]]})
    with pytest.raises(ValueError, match=message):
        method.resize(shapes)


def test_deviations_of_another_size_are_refused(make: Maker) -> None:
    method = make(features="joined")
    method.restore({"banks": [["a", 0]]})
    with pytest.raises(ValueError, match=r"deviations are not \[384\]"):
        method.resize({"banks.0": (4, 384), "deviations.0": (3,)})
