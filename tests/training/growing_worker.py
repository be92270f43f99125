"""Grows a checkpoint in one process: to the end, in two starts, both with a bank, and forgetting more than it may.

python growing_worker.py CHECKPOINT NEW_DATA FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.parallel.world import join_world
from unimmad.training.forgetting import Forgetting
from unimmad.training.grow_arguments import parse_grow_arguments
from unimmad.training.run import train

LOST = {"materials/nut": 0.5, "materials/cloth": 0.01, "materials/tiles": 0.01}


def main(checkpoint: str, data: str, folder: Path) -> None:
    world = join_world()
    words = ["--checkpoint", checkpoint, "--data", data, "--set", "training.steps=2", "--new-leaders", "2"]

    def grow(name: str, *more: str) -> bool:
        return train(parse_grow_arguments([*words, "--output-dir", str(folder / name), *more]), world)

    assert grow("whole")
    assert grow("parts", "--max-steps", "1")
    assert grow("parts")
    banked = ["--new-leaders", "8", "--own-bank", "--replay-fraction", "0", "--set", "training.optimizer=stable_adamw"]
    banked += ["--set", "training.weight_decay=0.1"]
    assert grow("bank_whole", *banked)
    assert grow("bank_parts", *banked, "--max-steps", "1")
    assert grow("bank_parts", *banked)
    with patch.object(Forgetting, "lost", lambda *_: LOST):
        try:
            grow("refused", "--max-forgetting", "0.02", "--replay-fraction", "0")
        except ValueError as error:
            (folder / "refused" / "error.txt").write_text(str(error))
    assert read_state(find_checkpoint(folder / "refused"))["step"] == 2


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
