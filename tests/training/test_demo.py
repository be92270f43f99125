"""The main job as `make demo` types it, but for its folder: what the embedded set must give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launches import CONFIGS, ROOT, command, run

I_AUROC = 0.90
P_AUROC = 0.95
SECONDS = 1500


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS)
def test_the_demo_reaches_its_marks_and_draws_its_pictures(tmp_path: Path):
    done = run([*command("deepspeed"), "--deepspeed_config", str(CONFIGS / "ep4.json")], tmp_path, SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    done = run([sys.executable, str(ROOT / "tools" / "evaluate.py")], tmp_path, SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "runs" / "demo" / "evaluation"
    means = {mean["name"]: mean["metrics"] for mean in json.loads((folder / "report.json").read_text())["means"]}
    assert means["mean of classes"]["I-AUROC"] >= I_AUROC
    assert means["mean of classes"]["P-AUROC"] >= P_AUROC
    assert len(list((folder / "pictures").rglob("*.png"))) >= 8
    assert "weights" in done.stdout
