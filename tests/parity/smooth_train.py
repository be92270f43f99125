"""The trainer with ReLU as softplus: its loss curves can be compared, since no unit flips by rounding."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.problem import Smooth

from unimmad.train import main

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with Smooth():
        sys.exit(main())
