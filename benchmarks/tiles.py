"""Host memory of scoring one image by tiles, over the image's size: ``Detector.predict`` on an array of noise.

The peak is the largest resident size while the image is scored, without what was resident before it was made: the image
itself, the map that is put together of its tiles, the weights of the tiles, and what the network takes. The last is
also counted by itself, as the peak of PyTorch's tensors. Linux alone tells the peak of a part of a process's life.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.tensor_memory import StorageWatch
from unimmad.config import TileSettings, load_recipe
from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.views import Geometry
from unimmad.evaluation.geometry import tiles_of
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample
from unimmad.methods.registry import METHODS, new_model, settings_of
from unimmad.profiling.machine import machine_name
from unimmad.report.table import Table

HELP = "host memory of scoring one image by tiles, over its size"
MIB = 2**20
PROCESS = Path("/proc/self")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--recipe", default="demo", help="untrained (default: %(default)s)")
    parser.add_argument("--tiles", default="512:32", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=4, help="tiles scored at once (default: %(default)s)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000], help="sides (default: 1000 2000 4000 8000)"
    )


def run(arguments: argparse.Namespace) -> str:
    """The table.

    Raises:
        ValueError: no such recipe, tiles that can't be, or a number that can't.
    """
    tiles = TileSettings.parse(arguments.tiles)
    if not tiles.size or arguments.batch_size < 1 or min(arguments.sizes) < 1:
        raise ValueError("give --tiles of some size, and a --batch-size and --sizes of 1 or more")
    if not (PROCESS / "clear_refs").exists():
        raise ValueError("this system does not tell the peak of a part of a process's life; measure on Linux")
    detector = _detector(arguments.recipe, tiles)
    _score(detector, (tiles.size * arguments.batch_size, tiles.size), arguments.batch_size)  # to warm up
    heads = ("image", "tiles", "s", "image MiB", "map MiB", "peak MiB", "peak, bytes a pixel", "of it tensors MiB")
    rows = [_row(detector, side, arguments.batch_size) for side in arguments.sizes]
    told = f"recipe {arguments.recipe}, {tiles.in_words()}, {arguments.batch_size} at once, {machine_name(CPU)}"
    return f"{told}\n{Table(heads, rows).to_text()}"


CPU = torch.device("cpu")


def _row(detector: Detector, side: int, batch_size: int) -> list[str]:
    began = time.process_time()
    peak = peak_memory(lambda: _score(detector, (side, side), batch_size))
    seconds = time.process_time() - began
    with StorageWatch() as watch:
        _score(detector, (side, side), batch_size)
    return [
        f"{side} x {side}",
        str(len(detector.engine.geometry.views((side, side), detector.engine.image_size))),
        f"{seconds:.1f}",
        f"{3 * side * side / MIB:.0f}",
        f"{4 * side * side / MIB:.0f}",
        f"{peak / MIB:.0f}",
        f"{peak / side / side:.1f}",
        f"{watch.peak / MIB:.0f}",
    ]


def peak_memory(work: Callable[[], None]) -> int:
    """Most bytes resident while it works, beyond those before."""
    gc.collect()
    (PROCESS / "clear_refs").write_text("5")  # the peak begins again
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _detector(recipe_name: str, tiles: TileSettings) -> Detector:
    recipe = load_recipe(recipe_name, (), settings_of(METHODS))
    entry = DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),))
    settings = recipe.evaluation.model_copy(update={"tiles": tiles})
    engine = ModelEngine(new_model(recipe, seed=0)[0], settings, CPU, "fp32", Geometry(tiles=tiles_of(tiles)))
    return Detector(engine, Catalogue({"noise": entry}, ("noise/noise",)))


def _score(detector: Detector, shape: tuple[int, int], batch_size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    next(detector.predict_all([InputSample("noise", image)], batch_size=batch_size))
