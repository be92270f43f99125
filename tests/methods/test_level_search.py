"""Search level by level: what distances are divided by, how levels and modalities join, and the forms it comes in."""

import json
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from methods.test_memory_bank import SIZE, TRAIN, Sample, collect, fit_on_ranks, sample, tokens
from torch.nn import functional as F

from unimmad.methods import discriminator
from unimmad.methods.level_maps import described, harmonic_mean, nearer_class
from unimmad.methods.level_search_method import LevelSearchMethod, LevelSearchMethodSettings
from unimmad.methods.nearest import nearest_of_others

TEST = [sample(number) for number in (11, 12, 13)]
WITH_ALL = {"whole_image": True, "drawn_on": 4}


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 10)


def method_with(**changes: object) -> LevelSearchMethod:
    values = {"image_size": SIZE, "backbone": "resnet10t", "modality_slots": 2, "patches": 40} | changes
    torch.manual_seed(0)
    return LevelSearchMethod(LevelSearchMethodSettings.model_validate(values)).eval()


def fitted(samples: Sequence[Sample] = TRAIN, **changes: object) -> LevelSearchMethod:
    method = method_with(**changes)
    method.begin(0)
    collect(method, samples)  # type: ignore[arg-type]
    method.finish(lambda given: given)
    return method


def test_the_nearest_of_others_is_what_plain_distances_say() -> None:
    torch.manual_seed(1)
    rows_mD, owner_of_m = torch.randn(30, 5), torch.arange(30) // 7
    distances_mm = torch.cdist(rows_mD.double(), rows_mD.double()).square()
    expected_m = distances_mm.masked_fill(owner_of_m[:, None] == owner_of_m, torch.inf).amin(1).float()
    for block_bytes in (1, 1000, 2**20):
        torch.testing.assert_close(nearest_of_others(rows_mD, owner_of_m, block_bytes=block_bytes)[:, 0], expected_m)


def test_patches_of_a_bank_lie_at_distance_1_of_other_images_in_the_mean() -> None:
    method = fitted(patches=10**6)  # all are kept, so it is known which image each row is of
    for level in method.search.banks:
        for (_, slot), bank_ND in zip(level.names, level.banks, strict=True):
            images = 3 if len(level.names) > 1 else 6
            patches = len(bank_ND) // images
            distances_NN = torch.cdist(bank_ND, bank_ND, compute_mode="donot_use_mm_for_euclid_dist")
            image_of_N = torch.arange(len(bank_ND)) // patches
            nearest_N = distances_NN.masked_fill(image_of_N[:, None] == image_of_N, torch.inf).amin(1)
            assert nearest_N.mean() == pytest.approx(1, abs=1e-3), slot


def test_one_image_of_a_class_is_enough() -> None:
    method = fitted([TRAIN[1]])
    assert method.maps(method(*tokens([TEST[0]]))).isfinite().all()


def test_images_that_are_alike_to_the_pixel_have_no_rounding_for_a_usual_distance() -> None:
    alike = [Sample(f"a/{number}", "a", TRAIN[1].slots, TRAIN[1].images_MCHW) for number in range(3)]
    flat = [Sample(f"b/{number}", "b", (0,), torch.full((1, 3, SIZE, SIZE), 0.3)) for number in range(3)]
    method = fitted([*alike, *flat], image_size=64)
    known = method.maps(method(*tokens([alike[0], flat[0]]), ["a", "b"]))
    assert known.amax() < 0.2, "two modalities of the images that the banks are made of"
    alone = torch.cat([method.maps(method(*tokens([each]), [each.class_name])) for each in (alike[0], flat[0])])
    torch.testing.assert_close(alone, known, rtol=1e-2, atol=1e-3, msg="the size of a batch decides nothing")
    changed = flat[0].images_MCHW.clone()
    changed[..., 8:10, 8:10] += 0.01
    other = method.maps(method(*tokens([Sample("c", "b", (0,), changed)]), ["b"]))
    assert known[1].amax() < other.amax() < 100


def test_levels_and_modalities_join_as_written_plainly() -> None:
    method = fitted()
    images_TCHW, counts, slots_T = tokens(TEST)
    classes = [each.class_name for each in TEST]
    maps_BHW = method.maps(method(images_TCHW, counts, slots_T, classes))
    names = method.search.banks[0].names
    levels = method.teacher(images_TCHW)
    token = 0
    for number, each in enumerate(TEST):
        expected_HW = torch.zeros(SIZE, SIZE)
        for slot in each.slots:
            inverse_HW = torch.zeros(SIZE, SIZE)
            for banks, level_TChw in zip(method.search.banks, levels, strict=True):
                place = names.index((each.class_name, slot))
                patches_hwD = F.avg_pool2d(level_TChw[token : token + 1], 3, 1, 1)[0].permute(1, 2, 0)
                queries_PD = (patches_hwD / banks.deviations[place]).flatten(0, 1)
                distances_P = (queries_PD[:, None] - banks.banks[place]).square().sum(2).amin(1).sqrt()
                distances_hw = distances_P.unflatten(0, level_TChw.shape[2:])
                large = F.interpolate(distances_hw[None, None], size=(SIZE, SIZE), mode="bilinear", align_corners=True)
                inverse_HW += 1 / large[0, 0]
            expected_HW += 3 / inverse_HW
            token += 1
        torch.testing.assert_close(maps_BHW[number], expected_HW, rtol=1e-3, atol=1e-4)


def test_the_whole_image_is_a_level_and_the_discriminator_a_factor() -> None:
    method, one = fitted(**WITH_ALL), TEST[1]
    images_TCHW, counts, slots_T = tokens([one])
    output = method(images_TCHW, counts, slots_T, ["b"])
    means = [method.teacher(tokens([each])[0])[1][0].mean((1, 2)) for each in TRAIN if each.class_name == "b"]
    deviation_D = torch.stack(means).std(0, correction=0)
    deviation_D = deviation_D.clamp_min(1e-3 * torch.stack(means).square().mean().sqrt())
    rows = [mean / deviation_D for mean in means]  # three images: all are asked for, and of each the other two
    apart = sum((rows[i] - rows[j]).norm() for i in range(3) for j in range(3) if i != j) / 6
    query = method.teacher(images_TCHW)[1][0].mean((1, 2)) / deviation_D
    expected = sum((query - row).norm() for row in rows) / 3 / apart
    torch.testing.assert_close(output.ratios.levels[3], expected.reshape(1, 1, 1), rtol=1e-3, atol=1e-4)
    logits_Thw = method.search.discriminators[0](output.ratios.levels[:3])
    torch.testing.assert_close(output.ratios.logits_Thw, logits_Thw)
    for weight in (0.25, 0.1, 0.0):
        method.search.drawn_weight = weight
        factors_Thw = torch.exp(weight * logits_Thw)
        large = F.interpolate(factors_Thw[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=True)[:, 0]
        torch.testing.assert_close(method.maps(output), harmonic_mean(output.ratios.levels, SIZE) * large)
    assert method_with(**WITH_ALL).search.drawn_weight == 0.25
    assert method_with(drawn_weight=0.1).search.drawn_weight == 0.1
    alone = fitted([TRAIN[1]], **WITH_ALL)
    assert not alone.search.discriminators, "anomalies of an only image can't be compared with other images"
    assert alone.maps(alone(*tokens([TEST[0]]))).isfinite().all()


def grown(first: Sequence[Sample], later: Sequence[Sample], **changes: object) -> LevelSearchMethod:
    method = fitted(first, **changes)
    method.begin(1, adding=True)
    collect(method, later)  # type: ignore[arg-type]
    method.finish(lambda given: given)
    return method


def test_classes_that_come_in_have_a_discriminator_of_their_own() -> None:
    of_a, of_b = ([one for one in TRAIN if one.class_name == name] for name in "ab")
    before, method = fitted(of_a, **WITH_ALL), grown(of_a, of_b, **WITH_ALL)
    both = tokens([TEST[1], TEST[1]])
    first, second = method(*both, ["a", "b"]), before(*tokens([TEST[1]]), ["a"])
    torch.testing.assert_close(method.maps(first)[0], before.maps(second)[0], msg="old classes keep theirs")
    assert len(method.search.discriminators) == 2
    for number, output in ((0, 0), (1, 1)):
        levels = [level[[output]] for level in first.ratios.levels[:3]]
        torch.testing.assert_close(first.ratios.logits_Thw[[output]], method.search.discriminators[number](levels))
    assert not torch.equal(*(each(levels) for each in method.search.discriminators))
    known = method.describe()
    assert known["judged_by"] == [int(name == "b") for name, _ in known["banks"]]
    other = method_with(**WITH_ALL)
    other.restore(json.loads(json.dumps(known)))
    other.resize({name: tuple(tensor.shape) for name, tensor in method.state_dict().items()})
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.maps(other(*both, ["a", "b"])), method.maps(first))
    nearest = method(*tokens([TEST[1]]))
    of_classes = [[level[[place]] for level in (*first.ratios.levels, first.ratios.logits_Thw)] for place in (0, 1)]
    chosen = min(of_classes, key=lambda levels: float(sum(level.mean() for level in levels[:4])))
    for ours, theirs in zip((*nearest.ratios.levels, nearest.ratios.logits_Thw), chosen, strict=True):
        torch.testing.assert_close(ours, theirs, msg="the nearest class's, its logits too")
    other.forget(["a"])
    assert other.describe()["judged_by"] == [1] * len(other.search.banks[0].names)
    torch.testing.assert_close(other.maps(other(*tokens([TEST[1]]), ["b"]))[0], method.maps(first)[1])


def test_who_judges_what_is_checked() -> None:
    method = grown([TRAIN[1]], [TRAIN[0], TRAIN[2], TRAIN[4]], **WITH_ALL)
    of_one_image = [number for number, name in enumerate(method.search.banks[0].names) if name.class_name == "a"]
    assert {method.search.discriminators.of_bank[number] for number in of_one_image} == {-1}
    output = method(*tokens([TEST[1]]), ["a"])
    torch.testing.assert_close(method.maps(output), harmonic_mean(output.ratios.levels, SIZE), msg="it has none")
    description, other = method.describe(), method_with(**WITH_ALL)
    shapes = {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}
    for judged_by in ([0], "00", [0.0] * len(description["judged_by"])):
        with pytest.raises(ValueError, match="judged_by is not one number for each of"):
            other.restore(description | {"judged_by": judged_by})
    other.restore(description | {"judged_by": [7] * len(description["judged_by"])})
    with pytest.raises(ValueError, match="judged by other discriminators than the file's 1"):
        other.resize(shapes)


def fitted_to_tiles(photographs: Sequence[Sequence[Sample]], **changes: object) -> LevelSearchMethod:
    """Of each photograph its tiles, which have one key."""
    method = method_with(**changes)
    method.begin(0)
    for tiles in photographs:
        keys = [tiles[0].key] * len(tiles)
        method.collect(*tokens(tiles), [one.class_name for one in tiles], keys, list(range(len(tiles))))
    method.finish(lambda given: given)
    return method


def test_tiles_of_one_photograph_are_no_other_images() -> None:
    images = [sample(0).images_MCHW + 0.01 * number for number in range(3)]
    tiles = [Sample("photo", "b", (0,), image_MCHW) for image_MCHW in images]
    assert not fitted_to_tiles([tiles], **WITH_ALL).search.discriminators, (
        "there is no other photograph to compare with"
    )
    assert fitted_to_tiles([tiles, [sample(2)]], **WITH_ALL).search.discriminators
    other = [Sample("other", "b", (0,), sample(2).images_MCHW + 0.01 * number) for number in range(3)]
    method = fitted_to_tiles([tiles, other], patches=10**6)
    for level in method.search.banks:
        bank_ND, half = level.banks[0], len(level.banks[0]) // 2
        assert level.owners[0].unique(return_counts=True)[1].tolist() == [half, half]
        distances_NN = torch.cdist(bank_ND, bank_ND, compute_mode="donot_use_mm_for_euclid_dist")
        of_other_N = torch.cat([distances_NN[:half, half:].amin(1), distances_NN[half:, :half].amin(1)])
        assert of_other_N.mean() == pytest.approx(1, abs=1e-3), "usual is how far the other photograph is"
    first, second = (fitted_to_tiles(each, patches=40) for each in ([tiles, other], [other, tiles]))
    assert torch.equal(first.search.banks[0].banks[0], second.search.banks[0].banks[0])
    with pytest.raises(ValueError, match="collected twice under one key"):
        fitted_to_tiles([tiles, tiles], patches=10**6)


def test_a_discriminator_of_other_levels_is_refused() -> None:
    method = fitted(**WITH_ALL)
    shapes = {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}
    shapes["search.discriminators.0.layers.0.weight"] = (24, 2, 3, 3)
    with pytest.raises(ValueError, match="a discriminator's tensors are not those of the recipe's levels"):
        method.resize(shapes)


def test_a_harmonic_mean_is_large_only_where_all_levels_are() -> None:
    one, ten = torch.ones(1, 2, 2), torch.full((1, 2, 2), 10.0)
    torch.testing.assert_close(harmonic_mean([ten, ten], 4), torch.full((1, 4, 4), 10.0))
    torch.testing.assert_close(harmonic_mean([one, ten], 4), torch.full((1, 4, 4), 20 / 11))
    assert harmonic_mean([torch.zeros(1, 2, 2), ten], 4).isfinite().all()


def test_the_nearer_class_is_the_same_for_all_levels_of_a_token() -> None:
    first = [torch.tensor([1.0, 5.0])[:, None, None], torch.tensor([1.0, 1.0])[:, None, None]]
    second = [torch.tensor([3.0, 1.0])[:, None, None], torch.tensor([0.5, 2.0])[:, None, None]]
    kept = nearer_class(first, second, 2)
    assert [level.flatten().tolist() for level in kept] == [[1, 1], [1, 2]]
    logits = [torch.tensor([number, number])[:, None, None] for number in (7.0, 8.0)]
    kept = nearer_class([*first, logits[0]], [*second, logits[1]], 2)
    assert kept[2].flatten().tolist() == [7, 8], "what is beside the levels goes with them, and has no say"


def test_an_unknown_class_is_that_whose_banks_are_nearest() -> None:
    method, one = fitted(), tokens([TEST[1]])  # one modality, which both classes have
    of_classes = [method(*one, [name]).ratios.levels for name in ("a", "b")]
    nearest = min(of_classes, key=lambda levels: float(sum(level.mean() for level in levels)))
    for ours, theirs in zip(method(*one).ratios.levels, nearest, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("changes", "calls"), [({}, 6), (WITH_ALL, 9)])
def test_ranks_and_checkpoints_change_nothing(changes: dict[str, object], calls: int) -> None:
    expected, ranks = fitted(**changes), [method_with(**changes) for _ in range(2)]
    for method, part in zip(ranks, ([5, 2, 0], [4, 3, 1]), strict=True):
        collect(method, [TRAIN[number] for number in part])  # type: ignore[arg-type]
    fit_on_ranks(ranks, calls)  # type: ignore[arg-type]
    state = expected.state_dict()
    assert ranks[0].describe() == expected.describe()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ranks[0].state_dict().items())
    other = ranks[1]
    other.restore(json.loads(json.dumps(expected.describe())))
    other.resize({name: tuple(tensor.shape) for name, tensor in state.items()})
    other.load_state_dict(state)
    assert torch.equal(other.maps(other(*tokens(TEST))), expected.maps(expected(*tokens(TEST))))


def test_banks_of_levels_that_do_not_belong_together_are_refused() -> None:
    state = fitted().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name != "search.levels.2.banks.0"}
    method = method_with()
    method.restore({"banks": [["a", 0], ["a", 1], ["b", 0]]})
    with pytest.raises(ValueError, match=r"2 tensors banks\.\* do not belong to 3 memory banks"):
        method.resize(shapes)


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (fitted, {}),
        (fitted, WITH_ALL),
        (partial(grown, TRAIN[1::2], TRAIN[::2]), WITH_ALL),
        (partial(grown, TRAIN[1:2], TRAIN[::2]), WITH_ALL),  # whose first class nobody judges
    ],
)
def test_the_traced_and_the_inference_form_give_the_same_maps(
    build: Callable[..., LevelSearchMethod], changes: dict[str, object]
) -> None:
    method = build(**changes)
    both = [each for each in [*TEST, sample(15)] if len(each.slots) == 2]
    images_BMCHW = torch.stack([each.images_MCHW for each in both])
    expected_BHW = method.maps(method(*tokens(both)))
    any_batch = {"images_BMCHW": {0: torch.export.Dim("batch", min=1)}}
    network = method.with_fixed_modalities((0, 1))
    traced = torch.export.export(network, (images_BMCHW[:2],), dynamic_shapes=any_batch).module()
    torch.testing.assert_close(traced(images_BMCHW), expected_BHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(traced(images_BMCHW[:1]), expected_BHW[:1], rtol=1e-4, atol=1e-4)
    folded = method.inference_form(0)
    torch.testing.assert_close(folded.maps(folded(*tokens(both))), expected_BHW, rtol=1e-3, atol=1e-3)


def test_autocast_changes_no_number_and_nothing_trains() -> None:
    method = fitted().train()
    assert not any(parameter.requires_grad for parameter in method.parameters())
    assert not any(module.training for module in method.teacher.modules())
    plain = method.maps(method(*tokens(TEST)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.maps(method(*tokens(TEST))), plain)


def test_windows_are_of_the_papers_kind() -> None:
    map_TChw = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert described(map_TChw)[0, 1, 1, 0] == 4
    assert described(map_TChw)[0, 0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 9)
