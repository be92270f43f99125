"""Train and score several methods on the same data; the same as the command ``unimmad compare``. See
docs/comparison.md, or --help.

python tools/compare.py --methods unimmad,rd,memory_bank --recipe tiny
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("compare"))
