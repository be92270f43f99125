"""``python -m unimmad`` is the command ``unimmad``."""

import sys

from unimmad.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
