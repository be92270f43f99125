"""Grows a checkpoint three times in one process: to the end, in two starts, and forgetting more than it may.

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
    with patch.object(Forgetting, "lost", lambda *_: LOST):
        try:
            grow("refused", "--max-forgetting", "0.02", "--replay-fraction", "0")
        except ValueError as error:
            (folder / "refused" / "error.txt").write_text(str(error))
    assert read_state(find_checkpoint(folder / "refused"))["step"] == 2


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
