"""Report a checkpoint's metrics, as a table on screen and as CSV, JSON, Markdown, LaTeX and pictures.

python tools/evaluate.py                                  the newest run, on the data it was trained on
python tools/evaluate.py --checkpoint runs/demo --data data/synthetic data/pothole
python tools/evaluate.py --modalities each                what each sensor is worth
python tools/evaluate.py --report runs/a/evaluation --compare runs/b/evaluation
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from unimmad.checkpoint.folder import find_checkpoint, newest_run
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.evaluation.comparison import compare, read_report, screen_comparison, write_comparison
from unimmad.evaluation.each_modality import EachModality, evaluate_each_modality, screen_modalities
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.evaluation.report import Report
from unimmad.evaluation.scoring import named_device
from unimmad.evaluation.screen import screen_table

RUNS = Path("runs")
TRAINING_COMMAND = "deepspeed unimmad/train.py --deepspeed_config ds_configs/ep1.json"


EACH = "each"


def main() -> int:
    arguments = _parse()
    try:
        other = None if arguments.compare is None else read_report(arguments.compare)
        if arguments.report is None:
            report, output = _evaluate(arguments)
        else:
            report, output = read_report(arguments.report), arguments.output_dir
            print(screen_table(report))
        if other is not None:
            _compare(report, other, str(arguments.compare), output)
    except ValueError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command goes on behind the last finished class", file=sys.stderr)
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder; default: the newest of runs/")
    parser.add_argument("--data", type=Path, nargs="+", help="shard folders; default: those it was trained on")
    parser.add_argument("--output-dir", type=Path, help="default: RUN/evaluation")
    parser.add_argument("--split", choices=["test", "train"], default="test")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: the GPU where there is one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU that has it, else fp32")
    parser.add_argument("--batch-size", type=int, help="images at a time; changes no number; default: the recipe's")
    parser.add_argument("--workers", type=int, help="loader processes; default: the recipe's")
    parser.add_argument(
        "--mask-resize",
        choices=["nearest", "bilinear"],
        default="nearest",
        help="bilinear: as the paper's authors do, for comparison with published rows",
    )
    parser.add_argument(
        "--modalities", help="evaluate with these only, as rgb,depth; each: every one alone and all together"
    )
    parser.add_argument("--fresh", action="store_true", help="do not go on where an interrupted evaluation ended")
    parser.add_argument(
        "--spill", type=Path, metavar="DIR", help="keep pixel scores in files there, for classes larger than memory"
    )
    parser.add_argument("--published", action="store_true", help="put the paper's published rows beside ours")
    parser.add_argument("--compare", type=Path, metavar="REPORT", help="show differences to another report.json")
    parser.add_argument("--report", type=Path, help="show this report.json; evaluate nothing")
    return parser.parse_args()


def _evaluate(arguments: argparse.Namespace) -> tuple[Report, Path]:
    checkpoint = load_checkpoint(_checkpoint_folder(arguments.checkpoint))
    checkpoint = _with_batch_size(checkpoint, arguments.batch_size)
    data = arguments.data or _trained_on(checkpoint)
    output = arguments.output_dir or checkpoint.folder.parent.parent / "evaluation"
    device = named_device(arguments.device)
    run = partial(
        evaluate_checkpoint,
        checkpoint,
        data,
        device=device,
        workers=_workers(arguments.workers, checkpoint),
        split=arguments.split,
        mask_resize=arguments.mask_resize,
        precision=arguments.precision,
        fresh=arguments.fresh,
        spill_to=arguments.spill,
        published=arguments.published,
    )
    if arguments.modalities == EACH:
        each = evaluate_each_modality(run, data, arguments.split, output)
        _print(each.whole)
        _print_modalities(each)
        return each.whole.report, output
    evaluation = run(output=output, modalities=_modalities(arguments.modalities))
    _print(evaluation)
    return evaluation.report, output


def _compare(report: Report, other: Report, name: str, output: Path | None) -> None:
    comparison = compare(report, other, name)
    print(screen_comparison(comparison))
    if output is not None:
        for path in write_comparison(comparison, output):
            print(f"table    {path}")


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


def _workers(given: int | None, checkpoint: LoadedCheckpoint) -> int:
    if given is not None and given < 0:
        raise ValueError(f"--workers {given} must be 0 or more")
    return checkpoint.recipe.data.workers if given is None else given


def _with_batch_size(checkpoint: LoadedCheckpoint, given: int | None) -> LoadedCheckpoint:
    if given is None:
        return checkpoint
    if given < 1:
        raise ValueError(f"--batch-size {given} must be 1 or more")
    settings = checkpoint.recipe.evaluation.model_copy(update={"batch_size": given})
    return replace(checkpoint, recipe=checkpoint.recipe.model_copy(update={"evaluation": settings}))


def _modalities(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--modalities names none; write them as rgb,depth, or each")
    return names


def _print_modalities(each: EachModality) -> None:
    print(screen_modalities(each))
    for table in each.tables:
        print(f"table    {table}")


def _print(evaluation: Evaluation) -> None:
    print(screen_table(evaluation.report))
    for table in evaluation.tables:
        print(f"table    {table}")
    if evaluation.overview is not None:
        print(f"picture  {evaluation.overview}")
        print(f"pictures {evaluation.class_pictures[0].parent}/ (one a class)")


if __name__ == "__main__":
    sys.exit(main())
