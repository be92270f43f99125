"""Report a checkpoint's metrics; the same as the command ``unimmad evaluate``. See docs/evaluation.md, or --help.

python tools/evaluate.py --checkpoint runs/demo
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("evaluate"))
