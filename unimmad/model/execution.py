"""How the networks before C-MoE are computed: their maps' layout in memory, and compiled or not. The same numbers.

Neither paid where it was measured (docs/speed.md), so both are off unless asked for.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn
from torch.utils._triton import has_triton

from unimmad.model.unimmad import UniMMAD

CXX = ("c++", "g++", "clang++")
CC = ("cc", "gcc", "clang")


def use_channels_last(model: UniMMAD) -> None:
    """From now on maps of backbones and compression hold a position's channels side by side, as tensor cores take them.

    Numbers differ by rounding. Weights stay as they are, since ZeRO lays them out by itself.
    """
    model.memory_format = torch.channels_last


def compile_networks(model: UniMMAD, device: torch.device) -> None:
    """Compile backbones, input embedding and compression at their first pass, which then takes a minute or more.

    Numbers differ by rounding.

    Raises:
        ValueError: this machine lacks what ``torch.compile`` needs for ``device``.
    """
    if lacking := _lacking(device):
        raise ValueError(f"torch.compile needs {lacking} for {device.type}, and there is none here: leave compile off")
    for network in _networks(model):
        # In place: a wrapper would change the names of parameters, which checkpoints rely on.
        network.compile()


def _networks(model: UniMMAD) -> list[nn.Module]:
    teacher = model.teacher if model.folded_teacher is None else model.folded_teacher.network
    return [teacher, model.input_embedding, model.encoder, model.compression]


def _lacking(device: torch.device) -> str:
    """In words; empty where nothing is."""
    if device.type == "cuda" and not has_triton():
        return "Triton and a GPU that it knows"
    names, variable, language = (CC, "CC", "C") if device.type == "cuda" else (CXX, "CXX", "C++")
    if not any(shutil.which(name) for name in (os.environ.get(variable), *names) if name):
        return f"a {language} compiler ({names[1]}, or what {variable} names)"
    return ""
