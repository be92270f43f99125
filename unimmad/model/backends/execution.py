"""How convolutional networks are computed: their maps' layout in memory, and compiled or not; equal to rounding.

Whether that pays depends on the machine (docs/speed.md), so both are off unless asked for.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
import torch.compiler.config

from unimmad.model.backends.private_torch import has_triton
from unimmad.model.method import Method

COMPILERS = {"cpu": ("C++", "CXX", ("g++",)), "cuda": ("C", "CC", ("gcc", "clang"))}
"""By kind of device: language, variable that names the compiler, and what is tried without it."""
GRAPHS = 64
"""Kept of one function, where PyTorch keeps 8: teacher and encoder share theirs, and shapes vary."""


def use_channels_last(model: Method) -> None:
    """From now on maps of convolutional networks hold a position's channels side by side, as tensor cores take them.

    Weights stay as they are, since ZeRO lays them out by itself.
    """
    model.memory_format = torch.channels_last


def compile_networks(model: Method, device: torch.device) -> None:
    """Compile the method's networks at their first pass, which then takes a minute or more.

    Raises:
        ValueError: as ``check_compiling``.
    """
    check_compiling(device)
    torch.compiler.config.recompile_limit = max(GRAPHS, torch.compiler.config.recompile_limit)
    for network in model.networks():
        # In place: a wrapper would change the names of parameters, which checkpoints rely on.
        network.compile()


def check_compiling(device: torch.device) -> None:
    """
    Raises:
        ValueError: this machine lacks what ``torch.compile`` needs for ``device``.
    """
    if lacking := _lacking(device):
        raise ValueError(
            f"torch.compile needs {lacking} for {device.type}, and there is none here; go without it "
            "(training: --set training.compile=false; evaluation: --no-compile)"
        )


def _lacking(device: torch.device) -> str:
    """In words; empty where nothing is."""
    if device.type == "cuda" and not has_triton():
        return "Triton and a GPU that it knows"
    language, variable, usual = COMPILERS["cuda" if device.type == "cuda" else "cpu"]
    names = [os.environ[variable]] if variable in os.environ else usual
    if not any(map(shutil.which, names)):
        return f"a {language} compiler ({' or '.join(usual)}, or the program that {variable} names)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's header files (python3-dev)"
    return ""
