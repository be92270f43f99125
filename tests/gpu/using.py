"""(e) What is done with a checkpoint: evaluation, thresholds, prediction, export, the exported file's numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gpu.check import CheckError, Found, Setting, SkippedError
from gpu.runs import make_shards, trained_run

from unimmad.cli.evaluate import main as evaluate
from unimmad.cli.export import main as export
from unimmad.cli.predict import main as predict
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample

DATASET, CLASS = "solids", "cookie"
BOUND = 1e-3
"""Of the largest value: the exported file runs on a processor."""


def evaluated(setting: Setting) -> Found:
    """In fp32 and in bf16."""
    run = _run(setting)
    facts = {}
    for precision in ("fp32", "bf16"):
        output = setting.work / f"evaluation-{precision}"
        argv = ["--data", str(setting.shards), "--output-dir", str(output), "--precision", precision, "--no-resume"]
        seconds = _timed(evaluate, ["--checkpoint", str(run), "--device", setting.device, *argv])
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        facts[precision] = f"{seconds:.1f} s, {len(report['classes'])} classes"
    return Found(facts)


def calibrated(setting: Setting) -> Found:
    """Thresholds beside the checkpoint."""
    argv = ["--checkpoint", str(_run(setting)), "--device", setting.device, "--data", str(setting.shards)]
    return Found({"seconds": round(_timed(evaluate, [*argv, "--calibrate"]), 1)})


def predicted(setting: Setting) -> Found:
    """Images of one's own."""
    folder = setting.work / "images"
    _write_images(folder)
    argv = ["--checkpoint", str(_run(setting)), "--device", setting.device, "--data", str(setting.shards)]
    output = setting.work / "predictions"
    seconds = _timed(predict, [*argv, str(folder), "--output-dir", str(output)])
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    if len(lines) != len(_images()):
        raise CheckError(f"{len(lines)} predictions of {len(_images())} samples")
    return Found({"samples": len(lines), "seconds": round(seconds, 1)})


def exported(setting: Setting) -> Found:
    """To ONNX."""
    _need("onnx", "onnxscript")
    target = _onnx(setting)
    argv = ["--checkpoint", str(_run(setting)), "--data", str(setting.shards), "--dataset", DATASET]
    seconds = _timed(export, [*argv, "--format", "onnx", "--target", str(target)])
    return Found({"seconds": round(seconds, 1), "MiB": round(target.stat().st_size / 2**20)})


def compared(setting: Setting) -> Found:
    """ONNX Runtime on a processor beside the checkpoint on the device."""
    _need("onnxruntime", "onnx", "onnxscript")
    if not _onnx(setting).exists():
        exported(setting)
    samples = [InputSample(f"sample {number}", images) for number, images in enumerate(_images())]
    detector = Detector.from_checkpoint(_run(setting), data=[setting.shards], device=setting.device, precision="fp32")
    ours = list(detector.predict_all(samples))
    theirs = list(Detector.from_onnx(_onnx(setting), device="cpu").predict_all(samples))
    largest = max(float(np.abs(mine.map_HW).max()) for mine in ours)
    apart = max(
        float(np.abs(mine.map_HW - other.map_HW).max()) / largest for mine, other in zip(ours, theirs, strict=True)
    )
    if not apart <= BOUND:
        raise CheckError(f"maps differ by {apart:.1e} of the largest value")
    return Found({"largest difference of maps": f"{apart:.1e} of the largest value"})


def _run(setting: Setting) -> Path:
    make_shards(setting)
    return trained_run(setting)


def _onnx(setting: Setting) -> Path:
    return setting.work / "solids.onnx"


def _need(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise SkippedError(f"{', '.join(missing)} not installed (the extra [export] has it)")


def _timed(command: Callable[[list[str]], int], argv: list[str]) -> float:
    started = time.perf_counter()
    if code := command(argv):
        raise CheckError(f"ended with {code}; the log has its message: {' '.join(argv)}")
    return time.perf_counter() - started


def _images() -> list[dict[str, Any]]:
    """Two samples of the dataset's modalities."""
    rng = np.random.default_rng(0)
    return [
        {
            "rgb": (rng.random((96, 96, 3)) * 255).astype(np.uint8),
            "depth": (rng.random((96, 96)) * 60000).astype(np.uint16),
        }
        for _ in range(2)
    ]


def _write_images(folder: Path) -> None:
    from PIL import Image

    for number, images in enumerate(_images()):
        for modality, pixels in images.items():
            path = folder / modality / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
