"""What commands print: whatever files and classes are called."""

from __future__ import annotations

import io
import sys


def print_any_name() -> None:
    """Let standard output escape what its encoding lacks, as standard error does, where ``print`` would raise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
