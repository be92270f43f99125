"""Export a checkpoint as one ONNX or torch.export file. See docs/predict.md, or --help.

python tools/export.py --checkpoint runs/demo --dataset solids --format onnx --target solids.onnx
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("export"))
