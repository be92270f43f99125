"""Score one's own images; the same as the command ``unimmad predict``. See docs/predict.md, or --help.

python tools/predict.py --checkpoint runs/demo PATH...
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("predict"))
