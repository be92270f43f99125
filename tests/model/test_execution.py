from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partialmethod

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backends import convolution, execution
from unimmad.model.backends.execution import check_compiling, compile_networks, use_channels_last
from unimmad.model.inference import for_inference
from unimmad.model.loss import unimmad_loss
from unimmad.model.unimmad import UniMMAD

CPU = torch.device("cpu")
COUNTS = (1, 3)


@pytest.fixture
def model() -> UniMMAD:
    made, _ = new_model(load_recipe("tiny"), seed=0)
    made.calibrate_backbone([inputs()[0]])
    return made


@pytest.fixture
def traced_only(monkeypatch) -> None:
    """Dynamo's part of torch.compile; making code takes minutes, and the long test does it."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))


def inputs() -> tuple[Tensor, tuple[int, ...], Tensor]:
    images = torch.randn(sum(COUNTS), 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return images, COUNTS, torch.tensor([slot for count in COUNTS for slot in range(count)])


def gradients(model: UniMMAD) -> dict[str, Tensor]:
    model.train().zero_grad()
    unimmad_loss(model(*inputs()), torch.ones(sum(COUNTS)), 1.0, focal_gamma=2.0).total.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@torch.no_grad()
def distances(model: UniMMAD) -> tuple[Tensor, ...]:
    return model.eval()(*inputs()).distances


def assert_trains_and_scores_alike(changed: UniMMAD, plain: UniMMAD) -> None:
    ours, wanted = gradients(changed), gradients(plain)
    assert ours.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in ours.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4 * largest), name
        assert gradient.is_contiguous(), name
    for mine, other in zip(distances(changed), distances(plain), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def layouts_seen(network: nn.Module) -> list[bool]:
    """Filled while ``network`` runs: whether each 3x3 convolution's map lies channels last."""
    seen: list[bool] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_pre_hook(
                lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
            )
    return seen


def test_channels_last_changes_the_layout_and_no_number(model):
    changed = copy.deepcopy(model)
    use_channels_last(changed)
    seen = [layouts_seen(part) for part in (changed.teacher, changed.encoder, changed.compression)]
    of_decoders: list[bool] = []
    for level in changed.levels:
        level.key.register_forward_pre_hook(lambda _, given: of_decoders.append(given[0].is_contiguous()))
        level.query.register_forward_pre_hook(lambda _, given: of_decoders.append(given[0].is_contiguous()))
    assert_trains_and_scores_alike(changed, model)
    assert all(layouts and all(layouts) for layouts in seen)
    assert of_decoders
    assert all(of_decoders), "C-MoE's maps stay as they were"


def test_channels_last_in_the_inference_form(model):
    expected = distances(copy.deepcopy(model))
    fast = for_inference(model)
    use_channels_last(fast)
    for mine, other in zip(distances(fast), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folded", [False, True])
def test_compiled_networks_keep_their_names_and_numbers(model, traced_only, folded):
    changed = copy.deepcopy(model)
    if folded:
        changed.freeze_teacher()
    compile_networks(changed, CPU)
    teacher = changed.folded_teacher.network if folded else changed.teacher
    for network in (teacher, changed.encoder, changed.input_embedding, changed.compression):
        assert network._compiled_call_impl is not None
    assert changed.state_dict().keys() == model.state_dict().keys()
    assert_trains_and_scores_alike(changed, model)


def transformed_convolutions(compute: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        compute()
    counts = {event.key: event.count for event in profiler.key_averages()}
    return counts.get("aten::_nnpack_spatial_convolution", 0)


@pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this PyTorch or processor has no NNPACK")
def test_compiled_networks_have_no_transformed_convolutions_but_the_decoders_have(model, traced_only, monkeypatch):
    expected = distances(copy.deepcopy(model))
    for name in ("LEAST_POSITIONS", "LEAST_MULTIPLY_ADDS"):
        monkeypatch.setattr(convolution, name, 1)
    fast = for_inference(model)
    with torch.no_grad():
        assert transformed_convolutions(lambda: fast.encoder(inputs()[0])) > 0
        compile_networks(fast, CPU)
        assert transformed_convolutions(lambda: fast.encoder(inputs()[0])) == 0
    assert transformed_convolutions(lambda: distances(fast)) > 0
    for mine, other in zip(distances(fast), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_compiled_to_code_they_give_the_same_numbers(model):
    changed = copy.deepcopy(model)
    changed.freeze_teacher()
    compile_networks(changed, CPU)
    assert_trains_and_scores_alike(changed, model)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cpu", r"torch.compile needs a C\+\+ compiler \(g\+\+, or the program"), ("cuda", "needs Triton")],
)
def test_without_a_compiler_it_says_so(model, monkeypatch, device, message):
    monkeypatch.setattr(execution.shutil, "which", lambda _: None)
    monkeypatch.setattr(execution, "has_triton", lambda: False)
    with pytest.raises(ValueError, match=message):
        compile_networks(model, torch.device(device))


def test_on_a_gpu_triton_needs_a_c_compiler(model, monkeypatch):
    monkeypatch.setattr(execution.shutil, "which", lambda _: None)
    monkeypatch.setattr(execution, "has_triton", lambda: True)
    with pytest.raises(ValueError, match=r"a C compiler \(gcc or clang, or the program that CC names\)"):
        compile_networks(model, torch.device("cuda"))


@pytest.mark.parametrize("named", ["no-such-compiler", "ccache g++"])
def test_the_compiler_that_is_named_is_the_one_that_counts(monkeypatch, named):
    """As for PyTorch, which does not go on to another one."""
    monkeypatch.setenv("CXX", named)
    with pytest.raises(ValueError, match="a C\\+\\+ compiler"):
        check_compiling(CPU)


def test_pythons_header_files_are_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(execution.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(execution.shutil, "which", lambda name: name)
    with pytest.raises(ValueError, match=r"Python's header files \(python3-dev\) for cpu"):
        check_compiling(CPU)
