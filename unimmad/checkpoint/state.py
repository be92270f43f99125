"""state.json: what a checkpoint says of itself beside its tensors; and the JSON files that make a folder whole."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unimmad import __version__
from unimmad.checkpoint.digests import write_digests
from unimmad.checkpoint.folder import FORMAT, STATE_NAME
from unimmad.checkpoint.tensor_slices import INDEX_NAME, build_index
from unimmad.checkpoint.trained_on import KEY, TrainedOn
from unimmad.config import Recipe

COMPOSING = "composing"
"""Key of what training measured (training/composing.py)."""
SECONDS = "training_seconds"
"""Key of the time that training took, its evaluations and checkpoints included."""
FITTED = "fitted"
"""Key of what a fitted method's tensors do not say."""
GROWTH = "growth"
"""Key of how a run of ``unimmad grow`` was begun (training/growth.py)."""
_PACKAGES = ("torch", "deepspeed", "timm")


@dataclass(frozen=True)
class Layout:
    """How the run that wrote the checkpoint was spread; the checkpoint itself is bound to none."""

    world_size: int = 1
    ep_size: int = 1
    zero_stage: int = 0


def build_state(
    recipe: Recipe,
    *,
    step: int,
    finished: bool,
    backbone_weights: str,
    data: Sequence[str],
    layout: Layout,
    trained_on: TrainedOn | None = None,
    composing: Sequence[Sequence[bool]] | None = None,
    fitted: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    growth: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of state.json.

    Args:
        step: optimizer steps done; the position in the data follows from it.
        finished: whether the recipe's schedule has ended.
        backbone_weights: in words, what the backbone was loaded with when training began.
        data: the shard folders trained on.
        layout: how the run was spread.
        trained_on: what was in them; None where that is not known.
        composing: whether each level's and kernel size's branch composes its kernels in training; None: by the rule.
        fitted: what a fitted method's tensors do not say.
        seconds: of training, over all starts of the run; None where nobody took the time.
        growth: how it grew out of another checkpoint; None where it did not.
    """
    samples = step * recipe.training.global_batch
    return {
        "format": FORMAT,
        "step": step,
        "samples_seen": samples,
        "data_position": samples,
        "finished": finished,
        **({} if seconds is None else {SECONDS: round(seconds, 3)}),
        "recipe": recipe.model_dump(mode="json"),
        "backbone_weights": backbone_weights,
        "data": list(data),
        **({} if trained_on is None else {KEY: trained_on.entry()}),
        **({} if composing is None else {COMPOSING: [list(of_level) for of_level in composing]}),
        **({} if fitted is None else {FITTED: dict(fitted)}),
        **({} if growth is None else {GROWTH: dict(growth)}),
        "layout": asdict(layout),
        "versions": {
            "python": platform.python_version(),
            "unimmad": __version__,
            **{package: package_version(package) for package in _PACKAGES},
        },
    }


def write_index_and_state(folder: Path, state: dict[str, Any], digests: Mapping[str, str]) -> None:
    """Complete a hidden checkpoint folder in which every tensor file is written.

    Args:
        folder: the hidden one.
        state: of ``build_state``.
        digests: of the tensor files, by name.

    Raises:
        ValueError: a tensor's pieces leave a gap.
        OSError: the disk is full or can't be written.
    """
    (folder / INDEX_NAME).write_text(json.dumps(build_index(folder)), encoding="utf-8")
    (folder / STATE_NAME).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    write_digests(folder, digests)


def package_version(package: str) -> str | None:
    """None where the package is not installed, as DeepSpeed where nothing is trained."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
