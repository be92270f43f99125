"""Report a checkpoint's metrics, as a table on screen and as CSV, JSON, Markdown and pictures.

python tools/evaluate.py                                  the newest run, on the data it was trained on
python tools/evaluate.py --checkpoint runs/demo --data data/synthetic data/pothole
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from unimmad.checkpoint.folder import find_checkpoint, newest_run
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.evaluation.tables import screen_table

RUNS = Path("runs")
TRAINING_COMMAND = "deepspeed unimmad/train.py --deepspeed_config ds_configs/ep1.json"


def main() -> int:
    arguments = _parse()
    try:
        checkpoint = load_checkpoint(_checkpoint_folder(arguments.checkpoint))
        data = arguments.data or _trained_on(checkpoint)
        output = arguments.output_dir or checkpoint.folder.parent.parent / "evaluation"
        evaluation = evaluate_checkpoint(
            checkpoint,
            data,
            output,
            split=arguments.split,
            device=_device(arguments.device),
            workers=_workers(arguments.workers, checkpoint),
            mask_resize=arguments.mask_resize,
        )
    except ValueError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    _print(evaluation)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder; default: the newest of runs/")
    parser.add_argument("--data", type=Path, nargs="+", help="shard folders; default: those it was trained on")
    parser.add_argument("--output-dir", type=Path, help="default: RUN/evaluation")
    parser.add_argument("--split", choices=["test", "train"], default="test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="loader processes; default: the recipe's")
    parser.add_argument(
        "--mask-resize",
        choices=["nearest", "bilinear"],
        default="nearest",
        help="bilinear: as the paper's authors do, for comparison with published rows",
    )
    return parser.parse_args()


def _checkpoint_folder(given: Path | None) -> Path:
    if given is not None:
        return find_checkpoint(given)
    run = newest_run(RUNS)
    if run is None:
        raise ValueError(f"no run in {RUNS}/ yet; train one first: {TRAINING_COMMAND}")
    return find_checkpoint(run)


def _trained_on(checkpoint: LoadedCheckpoint) -> list[Path]:
    folders = [Path(folder) for folder in checkpoint.state["data"]]
    if not folders:
        raise ValueError(
            f"{checkpoint.folder} names no data that it was trained on; give shard folders with --data DIR"
        )
    return folders


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from None


def _workers(given: int | None, checkpoint: LoadedCheckpoint) -> int:
    if given is not None and given < 0:
        raise ValueError(f"--workers {given} must be 0 or more")
    return checkpoint.recipe.data.workers if given is None else given


def _print(evaluation: Evaluation) -> None:
    print(screen_table(evaluation.report))
    for table in evaluation.tables:
        print(f"table    {table}")
    print(f"page     {evaluation.page}")
    if evaluation.overview is not None:
        print(f"picture  {evaluation.overview}")


if __name__ == "__main__":
    sys.exit(main())
