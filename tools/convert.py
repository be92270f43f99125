"""Turn released weights into a checkpoint; the same as the command ``unimmad convert``. See --help.

python tools/convert.py RELEASED_DIR
"""

from __future__ import annotations

import sys

from unimmad.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
