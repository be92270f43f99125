"""The documentation's tutorial runs as it stands, in an empty folder, and ends with the same decision twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.py"


def test_the_tutorial_ends_with_the_same_decision_by_pytorch_and_onnx(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(TUTORIAL)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "metal" in (tmp_path / "run" / "evaluation" / "report.html").read_text()
    assert float(re.search(r"'P-AUROC': ([\d.]+)", done.stdout)[1]) > 0.75
    found = re.search(r"^score ([\d.]+), threshold [\d.]+, anomalous: True, map \(96, 96\)$", done.stdout, re.MULTILINE)
    same = re.search(r"^ONNX Runtime: score ([\d.]+), anomalous: True$", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:]
    assert same, done.stdout[-2000:]
    assert abs(float(found[1]) - float(same[1])) <= 0.0011  # three decimals are printed
