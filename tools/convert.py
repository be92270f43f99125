"""Turn released weights into a checkpoint; the same as the command ``unimmad convert``. See --help.

python tools/convert.py RELEASED_DIR
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("convert"))
