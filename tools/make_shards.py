"""Make a folder of shards; the same as the command ``unimmad shards``. See docs/data.md, or --help.

python tools/make_shards.py SOURCE... --target DIR
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("shards"))
