from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backends import convolution
from unimmad.model.backends.convolution import FastConv2d, fast_convolution
from unimmad.model.cross_moe import over_joined_maps
from unimmad.model.inference import InferenceBranch, KernelCache, for_inference, over_maps_in_turn
from unimmad.model.routing import Routing
from unimmad.model.unimmad import Reconstruction, UniMMAD

COUNTS = (1, 4, 2)


@pytest.fixture(scope="module")
def model() -> UniMMAD:
    return with_statistics()


def with_statistics(*overrides: str) -> UniMMAD:
    """With statistics of its own, so that folding has something to fold."""
    made, _ = new_model(load_recipe("tiny", list(overrides)), seed=0)
    with torch.no_grad():
        for _ in range(2):
            score(made.train(), seed=7)
    return made.eval()


def score(model: UniMMAD, counts=COUNTS, seed: int = 1) -> Reconstruction:
    size = model.settings.image_size
    images = torch.randn(sum(counts), 3, size, size, generator=torch.Generator().manual_seed(seed))
    slots = torch.tensor([slot for count in counts for slot in range(count)])
    with torch.no_grad():
        return model(images, counts, slots)


def favour(model: UniMMAD, leaders: list[int]) -> UniMMAD:
    for level in model.levels:
        for branch in level.branches:
            branch.routed.gate.linear.bias.data[leaders] += 50
    return model


def products_of(model: UniMMAD) -> KernelCache:
    assert isinstance(model.on_routed, KernelCache)
    return model.on_routed


def assert_same(ours: Reconstruction, expected: Reconstruction) -> None:
    for mine, wanted in zip(ours.distances, expected.distances, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    for mine, wanted in zip(sum(ours.routings, ()), sum(expected.routings, ()), strict=True):
        assert torch.equal(mine.leaders_TK, wanted.leaders_TK)


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2**30], ids=["no cache", "some branches", "all"])
def test_the_inference_form_gives_the_same_numbers_with_any_cache(model, cache_bytes):
    fast = for_inference(copy.deepcopy(model), cache_bytes)
    for seed in range(3):
        assert_same(score(fast, seed=seed), score(model, seed=seed))
        assert products_of(fast).held_bytes <= cache_bytes


def test_a_residual_output_is_added_in_the_inference_form_too():
    model = with_statistics("model.decoder_output=residual")
    for level in model.levels:
        torch.nn.init.normal_(level.out[1].weight, generator=torch.Generator().manual_seed(3))
    expected = score(model)
    assert_same(score(for_inference(copy.deepcopy(model), 1 << 20)), expected)


@pytest.fixture
def transformed(monkeypatch) -> list[int]:
    """Every convolution that can be is transformed, however small; the kernel size of each."""
    sizes = []

    def pays(x_NCHW: torch.Tensor, kernel_OCkk: torch.Tensor) -> bool:
        fits = kernel_OCkk.shape[-1] in convolution.TRANSFORMED_SIZES and torch.backends.nnpack.is_available()
        sizes.extend([kernel_OCkk.shape[-1]] * fits)
        return fits

    monkeypatch.setattr(convolution, "transforms_pay", pays)
    return sizes


@pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this PyTorch or processor has no NNPACK")
@pytest.mark.parametrize("cache_bytes", [0, 2**30], ids=["no cache", "all"])
def test_transformed_convolutions_give_the_same_numbers(model, transformed, cache_bytes):
    assert_same(score(for_inference(copy.deepcopy(model), cache_bytes)), score(model))
    assert transformed.count(5) >= 3 * len(COUNTS)  # tokens may share leaders; one convolution a sample is left


def test_every_part_has_fast_convolutions(model):
    fast = for_inference(copy.deepcopy(model))
    for part in (fast.teacher, fast.encoder, fast.input_embedding.stem, fast.compression):
        assert any(isinstance(module, FastConv2d) for module in part.modules())
    assert all(level.condition.convolve is fast_convolution for level in fast.levels)


def test_a_leader_mixes_its_own_bank():
    model, _ = new_model(load_recipe("tiny", ["model.banks=4"]), seed=0)
    assert_same(score(for_inference(copy.deepcopy(model))), score(model.eval()))


def test_tokens_that_share_their_leaders_give_the_same_numbers(model):
    """Four tokens on two leaders: three convolutions instead of four."""
    slow = favour(copy.deepcopy(model), [1, 3])
    fast = for_inference(copy.deepcopy(slow))
    convolutions = []
    branch = fast.levels[0].branches[1]
    convolve = branch._convolve

    def counting(x_1Ehw: torch.Tensor, kernels_EEkk: Iterable[torch.Tensor]) -> torch.Tensor:
        kernels = list(kernels_EEkk)
        convolutions.append(len(kernels))
        return convolve(x_1Ehw, kernels)

    branch._convolve = counting
    assert_same(score(fast), score(slow))
    assert convolutions == [1, 3, 2]


def test_elsewhere_than_on_a_processor_a_samples_tokens_are_one_convolution(model, monkeypatch):
    branch = for_inference(copy.deepcopy(model)).levels[0].branches[1]
    kernels_EEkk = [branch.fixed_EEkk.to("meta")] * 3
    x_1Ehw = torch.empty(1, len(branch.fixed_EEkk), 5, 6, device="meta")
    convolutions = []
    monkeypatch.setattr(F, "conv2d", lambda *args, **kw: convolutions.append(1) or torch.conv2d(*args, **kw))
    assert branch._convolve(x_1Ehw, kernels_EEkk).shape == (3, *x_1Ehw.shape[1:])
    assert len(convolutions) == 1


def test_products_are_made_once_and_the_least_recently_used_go_first(model):
    one_leader = favour(copy.deepcopy(model), [0, 1])
    fast = for_inference(one_leader)
    score(fast)
    products = products_of(fast)
    a_pair = products.held_bytes
    assert a_pair == sum(2 * branch.fixed_EEkk.nbytes for branch in products.branches)
    before = products._kept[0, 0]
    score(fast, seed=2)
    assert products._kept[0, 0] is before
    assert products.held_bytes == a_pair
    products.resize(a_pair)
    favour(fast, [4, 5])
    for branch in products.branches:
        branch.routed.gate.linear.bias.data[[0, 1]] -= 200
    score(fast, seed=2)
    assert sorted(leader for place, leader in products._kept if place == 0) == [4, 5]
    assert products.held_bytes == a_pair


def test_what_went_before_changes_no_bit(model):
    """Where not all products of a batch fit, what is kept of earlier batches does not decide which are used."""
    on_two = favour(copy.deepcopy(model), [0, 1])
    whole = for_inference(copy.deepcopy(on_two))
    score(whole)
    limit = products_of(whole).held_bytes // 2
    fresh, used = (for_inference(copy.deepcopy(on_two), limit) for _ in range(2))
    products = products_of(used)
    nothing = torch.empty(0)
    products([Routing(nothing, nothing, torch.zeros(3, 1, dtype=torch.int64), nothing)] * len(products.branches))
    assert products.held_bytes == limit
    for ours, theirs in zip(score(used).distances, score(fresh).distances, strict=True):
        assert torch.equal(ours, theirs)


def test_a_smaller_cache_holds_less_at_once(model):
    fast = for_inference(copy.deepcopy(model))
    expected = score(fast)
    products = products_of(fast)
    largest = max(branch.fixed_EEkk.nbytes for branch in products.branches)
    limit = products.held_bytes // 2
    for_inference(fast, limit)
    assert limit - largest < products.held_bytes <= limit
    assert_same(score(fast), expected)
    assert products.held_bytes <= limit
    for_inference(fast, 0)
    assert products.held_bytes == 0
    assert_same(score(fast), expected)
    assert products.held_bytes == 0


def test_without_products_no_more_kernels_are_at_hand_than_a_sample_has_tokens(model, monkeypatch):
    fast = for_inference(copy.deepcopy(model), cache_bytes=0)
    branch = fast.levels[0].branches[1]
    composed, made = branch._composed, []

    def counting(routing: Routing) -> torch.Tensor:
        kernels_MEEkk = composed(routing)
        made.append((len(kernels_MEEkk), weakref.ref(kernels_MEEkk.untyped_storage())))
        assert sum(storage() is not None for _, storage in made) == 1
        return kernels_MEEkk

    monkeypatch.setattr(branch, "_composed", counting)
    assert_same(score(fast), score(model))
    assert [tokens for tokens, _ in made] == list(COUNTS)


def branch_map(branch: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(branch))


def test_branches_are_added_up_to_what_they_give_joined_and_never_are_two_at_hand():
    convolution = torch.nn.Conv2d(12, 5, 1, bias=False).requires_grad_(False)
    made = []

    def one_at_a_time() -> Iterator[torch.Tensor]:
        for branch in range(3):
            assert all(storage() is None for storage in made)
            map_TEhw = branch_map(branch)
            made.append(weakref.ref(map_TEhw.untyped_storage()))
            yield map_TEhw
            del map_TEhw

    with FlopCounterMode(display=False) as counter:
        found = over_maps_in_turn(one_at_a_time(), convolution)
    assert len(made) == 3
    with FlopCounterMode(display=False) as expected_counter:
        expected = over_joined_maps(map(branch_map, range(3)), convolution)
    torch.testing.assert_close(found, expected)
    assert counter.get_total_flops() == expected_counter.get_total_flops() > 0


def test_under_autocast_branches_are_joined():
    """Each summand would be rounded to bfloat16."""
    convolution = torch.nn.Conv2d(12, 5, 1, bias=False).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        found = over_maps_in_turn(map(branch_map, range(3)), convolution)
        assert torch.equal(found, over_joined_maps(map(branch_map, range(3)), convolution))


def test_no_batchnorm_is_left_but_that_of_the_cross_condition(model):
    fast = for_inference(copy.deepcopy(model))
    left = [name for name, module in fast.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert left == [f"levels.{level}.condition.batch_norm" for level in range(3)]


@pytest.fixture
def hasty_threads():
    """Threads that take turns a hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2**30], ids=["no cache", "some branches", "all"])
def test_threads_that_share_a_model_get_what_one_gets(model, hasty_threads, cache_bytes):
    """Batches of other sizes and leaders in each of 4 threads, over and over: equal to the last bit."""
    fast = for_inference(copy.deepcopy(model), cache_bytes)
    batches = [(counts, seed) for seed, counts in enumerate([(1,), (4,), (2, 1), (3, 2, 1)])]
    expected = [score(fast, *batch) for batch in batches]

    def differing(thread: int) -> list[int]:
        turns = [(thread + turn) % len(batches) for turn in range(12)]
        return [place for place in turns if not same(score(fast, *batches[place]), expected[place])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(differing, range(4))) == [[]] * 4
    assert products_of(fast).held_bytes <= cache_bytes
    assert products_of(fast).held_bytes == sum(kept.nbytes for kept in products_of(fast)._kept.values())


def same(ours: Reconstruction, expected: Reconstruction) -> bool:
    return all(map(torch.equal, ours.distances, expected.distances))


def test_the_form_is_taken_once(model):
    fast = for_inference(copy.deepcopy(model))
    assert for_inference(fast, cache_bytes=7) is fast
    assert products_of(fast).limit_bytes == 7
    branches = [branch for level in fast.levels for branch in level.branches]
    assert all(isinstance(branch, InferenceBranch) for branch in branches)


def test_the_fixed_experts_own_kernels_are_given_back(model):
    copied = copy.deepcopy(model)
    kernels = [weakref.ref(branch.fixed_EEkk) for level in copied.levels for branch in level.branches]
    for_inference(copied)
    gc.collect()
    assert len(kernels) == 9
    assert not any(kernel() is not None for kernel in kernels)
