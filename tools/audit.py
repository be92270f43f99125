"""Look at a dataset before it is trained on; the same as the command ``unimmad audit``. See docs/audit.md, or --help.

python tools/audit.py SOURCE
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("audit"))
