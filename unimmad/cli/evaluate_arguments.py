"""What is typed after ``unimmad evaluate`` and ``unimmad calibrate``, and what it means."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from unimmad.checkpoint.folder import NO_VERIFY_HELP, STATE_NAME, find_checkpoint, newest_run
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.checkpoint.thresholds import DEFAULT_FALSE_ALARM_RATE
from unimmad.config import TileSettings
from unimmad.data.location import DataFolder, parse_data_folder, recorded_data_folder
from unimmad.ranks.exchange import ALONE, Ranks

RUNS = Path("runs")
TRAINING_COMMAND = "unimmad train"
EACH = "each"
"""Of ``--modalities``: every one alone, and all together."""
_OF_A_REPORT = frozenset(
    {"split", "no_resume", "mask_resize", "resolution", "modalities", "published", "scratch_dir", "compile"}
)
NOT_TO_CALIBRATE = _OF_A_REPORT | {"output_dir", "compare", "report"}
"""Options, by attribute, that ``--calibrate`` has no use for."""
NOT_TO_SHOW = _OF_A_REPORT | {
    *("checkpoint", "no_verify", "data", "device", "precision", "batch_size", "workers", "channels_last", "cache_dir"),
    *("on_error", "roi", "tiles"),
}
"""Those that a report which is there already has no use for."""
_EXAMPLES = """Report a checkpoint's metrics on screen, as CSV, JSON, Markdown, LaTeX, and an HTML page with pictures.

    %(prog)s                                              the newest run, on the data it was trained on
    %(prog)s --data data/synthetic data/pothole --output-dir reports/both
    %(prog)s --modalities each                            what each sensor is worth
    %(prog)s --compare runs/other/evaluation              differences to another report
    torchrun --nproc-per-node 8 --no-python unimmad evaluate      by eight GPUs
"""
_CALIBRATION_EXAMPLES = """Score the calibration split, normal images that training never saw, and write thresholds
beside the checkpoint, for unimmad predict and unimmad export.

    %(prog)s                                              the newest run, on the data it was trained on
    %(prog)s --checkpoint runs/mine --false-alarm-rate 0.01
    %(prog)s --checkpoint runs/mine --data data/other     by the calibration split of other shards
    torchrun --nproc-per-node 8 --no-python unimmad calibrate      by eight GPUs

unimmad shards sets images aside for it: a tenth of one's own normal training images by itself; of benchmarks and of the
synthetic set the share that --calibration-fraction says:

    unimmad shards synthetic --target data/calibrated --calibration-fraction 0.2
    unimmad train --data data/calibrated
"""
TILES_HELP = (
    "score images larger than a tile by tiles of SIZE pixels that share OVERLAP (32) with their neighbours, and as a "
    "whole besides; default: the checkpoint's own tiles. Thresholds hold for those that they were calibrated by"
)
_COMPUTING = "computing: but for --precision it changes numbers by rounding at most"


def evaluation_parser() -> argparse.ArgumentParser:
    """All options; their names are the attributes of what it parses."""
    parser = argparse.ArgumentParser(description=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_what(parser)
    parser.add_argument("--output-dir", type=Path, help="default: RUN/evaluation, of one data and split")
    parser.add_argument(
        "--split", choices=["test", "train"], default="test", help="what to score; default: %(default)s"
    )
    parser.add_argument("--no-resume", action="store_true", help="do not go on where an interrupted evaluation ended")
    computing = parser.add_argument_group(_COMPUTING)
    _add_computing(computing)
    _add_computing_of_a_report(computing)
    _add_rules(parser.add_argument_group("what is measured"))
    _add_comparison(parser.add_argument_group("beside other numbers"))
    thresholds = parser.add_argument_group("thresholds")
    thresholds.add_argument(
        "--calibrate", action="store_true", help="instead of a report: thresholds, as unimmad calibrate writes them"
    )
    _add_false_alarm_rate(thresholds, "with --calibrate: ")
    parser.set_defaults(missing_sensors=False)
    return parser


def calibration_parser() -> argparse.ArgumentParser:
    """The options of ``unimmad calibrate``: those of an evaluation that have an effect on thresholds."""
    parser = argparse.ArgumentParser(
        description=_CALIBRATION_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_what(parser)
    _add_false_alarm_rate(parser)
    parser.add_argument(
        "--missing-sensors",
        action="store_true",
        help="also score each class without each of its modalities in turn, so that a sample that lacks one is "
        "decided; takes as many times longer as a class has modalities",
    )
    _add_computing(parser.add_argument_group(_COMPUTING))
    parser.set_defaults(compile=None, resolution=None)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder; default: the newest of runs/")
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DIR|URL",
        help="shard folders, or their URLs (s3://..., https://..., 'pipe:COMMAND {}'); default: the trained ones",
    )
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="skip: leave corrupt samples out and say so (default: stop)",
    )
    parser.add_argument(
        "--roi",
        type=Path,
        metavar="FILE|DIR|none",
        help="where to look, in place of the data's own regions of interest: a PNG or JSON of all classes, a folder of "
        "CLASS.png or CLASS.json, or none",
    )
    parser.add_argument("--tiles", metavar="SIZE[:OVERLAP[:whole]]|none", help=TILES_HELP)
    # DeepSpeed's launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _add_false_alarm_rate(group: argparse._ActionsContainer, when: str = "") -> None:
    group.add_argument(
        "--false-alarm-rate",
        type=float,
        default=DEFAULT_FALSE_ALARM_RATE,
        help=f"{when}share of normal images that may be called anomalous (default: %(default)s)",
    )


def _add_computing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; default: the GPU where there is one, each rank's own under torchrun"
    )
    group.add_argument("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU that has it, else fp32")
    group.add_argument("--batch-size", type=int, help="images at a time; default: the recipe's")
    group.add_argument("--workers", type=int, help="loader processes of each rank; default: the recipe's")
    group.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, help="another layout of maps in memory"
    )
    group.add_argument(
        "--cache-dir", type=Path, help="for shards from URLs; default: in $SLURM_TMPDIR, $TMPDIR, or ~/.cache"
    )


def _add_computing_of_a_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile; the first images take minutes"
    )
    group.add_argument(
        "--scratch-dir",
        type=Path,
        metavar="DIR",
        help="keep pixel scores in files there, for classes larger than memory",
    )


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--mask-resize",
        choices=["area", "nearest", "bilinear"],
        help="how masks come to the model's size; area loses no defect, bilinear is the paper's authors' way, for "
        "comparison with published rows; default: the recipe's",
    )
    group.add_argument(
        "--resolution",
        choices=["model", "original"],
        help="at what size pixels are measured: the model's, or each image's own, with masks as they are stored; "
        "default: the recipe's",
    )
    group.add_argument(
        "--modalities", help="evaluate with these only, as rgb,depth; each: every one alone and all together"
    )


def _add_comparison(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--published", action="store_true", help="put the paper's published rows beside ours")
    group.add_argument("--compare", type=Path, metavar="REPORT", help="show differences to another report.json")
    group.add_argument("--report", type=Path, help="show this report.json; evaluate nothing")


def check_together(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option was given that another one leaves without effect; names both.
    """
    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    if "false_alarm_rate" in given and not arguments.calibrate:
        raise ValueError("--false-alarm-rate is for --calibrate: give both, or neither")
    if "output_dir" in given and arguments.report and not arguments.compare:
        raise ValueError("--report shows a report and writes nothing: leave --output-dir out, or add --compare")
    for option, without in (("calibrate", NOT_TO_CALIBRATE), ("report", NOT_TO_SHOW)):
        if option in given and (ignored := sorted(given & without)):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            raise ValueError(f"{names}: of no effect with --{option}; leave out one or the other")


def chosen_checkpoint(arguments: argparse.Namespace, ranks: Ranks = ALONE) -> LoadedCheckpoint:
    """The checkpoint named, or the newest run's; with the batch size asked for and the way to compute.

    Raises:
        ValueError: there is none, or it can't be loaded.
    """
    # Rank 0 looks: a run that trains meanwhile may write another between two looks.
    folder = ranks.broadcast_object(_checkpoint_folder(arguments.checkpoint) if ranks.is_main else Path())
    checkpoint = load_checkpoint(folder, verify=not arguments.no_verify, ranks=ranks)
    switches = {name: getattr(arguments, name) for name in ("channels_last", "compile", "resolution")}
    changes = {name: value for name, value in switches.items() if value is not None}
    if arguments.batch_size is not None:
        if arguments.batch_size < 1:
            raise ValueError(f"--batch-size {arguments.batch_size} must be 1 or more")
        changes["batch_size"] = arguments.batch_size
    settings = checkpoint.recipe.evaluation.model_copy(update=changes)
    return replace(checkpoint, recipe=checkpoint.recipe.model_copy(update={"evaluation": settings}))


def _checkpoint_folder(named: Path | None) -> Path:
    folder = named or newest_run(RUNS)
    if folder is None:
        raise ValueError(f"no run in {RUNS}/ yet; train one first: {TRAINING_COMMAND}")
    return find_checkpoint(folder)


def chosen_data(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint) -> list[DataFolder]:
    """The shard folders named, or those that the checkpoint was trained on.

    Raises:
        ValueError: neither names any, or the checkpoint names a command or a folder that is not here.
    """
    if arguments.data:
        return [parse_data_folder(text) for text in arguments.data]
    state = str(checkpoint.folder / STATE_NAME)
    folders = [recorded_data_folder(folder, state) for folder in checkpoint.state.get("data", [])]
    if not folders:
        raise ValueError(
            f"{checkpoint.folder} names no data that it was trained on; give shard folders with --data DIR"
        )
    for folder in folders:
        if isinstance(folder, Path) and not folder.is_dir():
            raise ValueError(f"{state} names the data folder {folder}, which does not exist; say where by --data DIR")
    return folders


def chosen_workers(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint) -> int:
    """Loader processes.

    Raises:
        ValueError: fewer than 0.
    """
    if arguments.workers is None:
        return checkpoint.recipe.data.workers
    if arguments.workers < 0:
        raise ValueError(f"--workers {arguments.workers} must be 0 or more")
    return int(arguments.workers)


def chosen_tiles(text: str | None) -> TileSettings | None:
    """As they are typed; None where nothing was.

    Raises:
        ValueError: there can be no such tiles.
    """
    return None if text is None else TileSettings.parse(text)


def chosen_modalities(text: str | None) -> list[str] | None:
    """``rgb,depth`` as a list; None where nothing was typed.

    Raises:
        ValueError: it names none.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--modalities names none; write them as rgb,depth, or each")
    return names
