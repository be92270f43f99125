"""Where an exported file runs: the device asked for, or a refusal; never whatever happens to be installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from unimmad.inference import engines
from unimmad.inference.detector import Detector
from unimmad.inference.engines import CPU_PROVIDER, CUDA_PROVIDER, OnnxEngine, onnx_providers

INSTALLED = ["TensorrtExecutionProvider", CUDA_PROVIDER, "AzureExecutionProvider", CPU_PROVIDER]
WITHOUT_CUDA = ["AzureExecutionProvider", CPU_PROVIDER]


@pytest.mark.parametrize(
    ("device", "installed", "expected"),
    [
        (None, INSTALLED, [CUDA_PROVIDER, CPU_PROVIDER]),
        (None, WITHOUT_CUDA, [CPU_PROVIDER]),
        ("cpu", INSTALLED, [CPU_PROVIDER]),
        ("cuda", INSTALLED, [CUDA_PROVIDER, CPU_PROVIDER]),
    ],
)
def test_cuda_comes_first_where_asked_for_or_there_then_the_cpu_and_no_other(device, installed, expected):
    assert [name for name, _ in onnx_providers(device, installed)] == expected


def test_a_gpu_is_told_which_and_that_fp32_is_fp32():
    assert onnx_providers("cuda:1", INSTALLED)[0] == (CUDA_PROVIDER, {"device_id": 1, "use_tf32": 0})
    assert onnx_providers(None, INSTALLED)[0] == (CUDA_PROVIDER, {"device_id": 0, "use_tf32": 0})


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "device cuda can't be used here: this ONNX Runtime has no CUDAExecutionProvider"),
        ("mps", "device mps can't be used for an exported file: cpu, cuda, cuda:1"),
        ("cuda:x", "device cuda:x can't be used for an exported file"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, message):
    with pytest.raises(ValueError, match=message):
        onnx_providers(device, WITHOUT_CUDA)


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[list[str]]:
    """The providers of each session that is opened; the runtime has CUDA's and finds no GPU for it."""
    seen = []

    def open_session(file: Path, providers):
        seen.append([name for name, _ in providers])
        return SimpleNamespace(
            get_providers=lambda: [CPU_PROVIDER], get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={})
        )

    runtime = SimpleNamespace(get_available_providers=lambda: INSTALLED, InferenceSession=open_session)
    monkeypatch.setattr(engines, "_onnx_runtime", lambda: runtime)
    (tmp_path / "any.onnx").write_bytes(b"")
    return seen


def test_a_gpu_asked_for_that_the_runtime_falls_back_from_is_an_error(asked, tmp_path):
    with pytest.raises(ValueError, match="device cuda can't be used here: ONNX Runtime's own message"):
        OnnxEngine(tmp_path / "any.onnx", "cuda")
    with pytest.raises(ValueError, match="its metadata"):  # goes on to read the file, which is none
        OnnxEngine(tmp_path / "any.onnx")
    assert asked == [[CUDA_PROVIDER, CPU_PROVIDER]] * 2


def test_the_detector_hands_the_device_on(asked, tmp_path):
    with pytest.raises(ValueError, match="its metadata"):
        Detector.open(tmp_path / "any.onnx", device="cpu")
    assert asked == [[CPU_PROVIDER]]


def test_data_are_of_no_use_to_an_exported_file(tmp_path):
    with pytest.raises(ValueError, match=r"any.onnx says itself which modalities it takes: leave the data out"):
        Detector.open(tmp_path / "any.onnx", data=[tmp_path])
