"""Loads a checkpoint at this launch's layout and saves it again: nothing may be lost or changed on the way.

deepspeed --num_accelerators 4 resave_worker.py CHECKPOINT RUN --ep-size 2 --zero 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import build_engine
from unimmad.parallel.world import join_world, leave_world
from unimmad.training.checkpointing import RunFacts, restore_optimizer, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ep-size", type=int, required=True)
    parser.add_argument("--zero", type=int, required=True)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    world = join_world()
    loaded = load_checkpoint(options.checkpoint)
    settings = DeepSpeedSettings({"zero_optimization": {"stage": options.zero}}, options.ep_size, options.zero)
    engine = build_engine(loaded.model.train(), settings, loaded.recipe.training, world, options.ep_size)
    restore_optimizer(engine, options.checkpoint, loaded.step)
    facts = RunFacts(loaded.recipe, loaded.backbone_weights, loaded.state["data"], options.zero)
    save_checkpoint(CheckpointFolder(options.run), engine, facts, loaded.step, finished=False)
    leave_world()


if __name__ == "__main__":
    main()
