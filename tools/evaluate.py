"""Report a checkpoint's metrics; the same as the command unimmad-evaluate. See docs/evaluation.md, or --help.

python tools/evaluate.py --checkpoint runs/demo
"""

from __future__ import annotations

import sys

from unimmad.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
