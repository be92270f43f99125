"""Look at a dataset before it is trained on: what is wrong with it, odd about it, or twice in it.

    unimmad audit SOURCE
    unimmad audit SHARDS...
    unimmad audit SOURCE --weights resnet18.pth --workers 2

SOURCE is what unimmad shards takes, SHARDS a folder that it wrote, or a URL of one. Prints what was found and what to
do, and writes audit.json and audit.html with pictures. The exit status is 0 where there is nothing but notes, 1 with
warnings, 3 with errors, and 2 where the audit itself failed. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unimmad.audit.blocks import Blocks
from unimmad.audit.findings import Severity, worst
from unimmad.audit.output import save
from unimmad.audit.patches import FeatureSettings, NoWeightsError, PatchDescriber
from unimmad.audit.run import Audited, Progress, audit, default_workers
from unimmad.audit.samples import AuditSample, samples_of_sets, samples_of_shards
from unimmad.audit.screen import screen_lines, summary_line
from unimmad.cli.console import run_command
from unimmad.config.method import MAX_IMAGE_SIZE
from unimmad.data.index import INDEX_NAME
from unimmad.data.layouts import LAYOUTS, find_sets
from unimmad.data.location import DataFolder, RemoteFolder, parse_data_folder
from unimmad.data.modality import parse_modality, reading_of
from unimmad.evaluation.scoring import named_device
from unimmad.serialization.text import one_line

EXIT = {Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 3}
"""2 says that the audit itself failed, as other commands do."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = audit_parser()
    options = parser.parse_intermixed_args(arguments)
    return run_command(parser.prog, partial(_audit, options))


def audit_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a dataset's folder or table, or a shard folder")
    parser.add_argument("--output-dir", type=Path, default=Path("audit"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--image-size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="of the model that will be trained; defects are measured at it (default: %(default)s)",
    )
    parser.add_argument("--layout", choices=("auto", *LAYOUTS), default="auto", help="of SOURCE; as in unimmad shards")
    parser.add_argument(
        "--modality", action="append", default=[], metavar="NAME=KIND", help="of SOURCE; as in unimmad shards"
    )
    parser.add_argument(
        "--backbone",
        default=FeatureSettings.backbone,
        help="network of timm that looks for suspicious training images (default: %(default)s)",
    )
    parser.add_argument(
        "--weights", default="imagenet", metavar="FILE", help="its weights (default: timm's, of ImageNet)"
    )
    parser.add_argument(
        "--no-features", dest="features", action="store_false", help="don't look for suspicious training images"
    )
    parser.add_argument("--device", help="of the network: cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--workers", type=int, help="processes that read and measure (default: by cores and samples)")
    return parser


def _audit(options: argparse.Namespace) -> int:
    if not 0 < options.image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"--image-size {options.image_size}: must lie between 1 and {MAX_IMAGE_SIZE}")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must be 0 or more")
    samples, notices = _samples(options)
    describer, no_features = _describer(options)
    progress = Progress()
    try:
        audited = audit(
            samples,
            image_size=options.image_size,
            describer=describer,
            no_features=no_features,
            output=options.output_dir,
            workers=_workers(options, len(samples)),
            progress=progress,
        )
        file, page = save(audited, samples, options.sources, options.output_dir)
    except KeyboardInterrupt:
        kept = f"; {progress.kept} of {progress.total} samples are kept: the same command goes on"
        raise KeyboardInterrupt(kept if progress.kept else "") from None
    Blocks(options.output_dir, {}).remove()
    for notice in notices:
        print(f"note: {one_line(notice)}")
    _print(audited, file, page)
    return EXIT[worst(audited.findings)]


def _samples(options: argparse.Namespace) -> tuple[list[AuditSample], list[str]]:
    """Of all sources, and what is to be said of how they were read.

    Raises:
        ValueError: as ``find_sets`` and ``ShardSet.open``, or shards and sources together.
    """
    folders = [_shard_folder(source) for source in options.sources]
    shards = [folder for folder in folders if folder is not None]
    names = [Path(source).name for source in options.sources]
    if not shards and len(set(names)) < len(names):
        raise ValueError("two of these are called alike, and would be one dataset; audit them one after the other")
    if shards and len(shards) < len(folders):
        raise ValueError("some of these are shard folders and some are not; audit them one after the other")
    if shards:
        if options.modality or options.layout != "auto":
            raise ValueError("--modality and --layout speak of a SOURCE; shards say themselves what they hold")
        return samples_of_shards(shards), []
    found = [
        item
        for source in options.sources
        for item in find_sets(
            Path(source),
            layout=options.layout,
            modalities=[parse_modality(text) for text in options.modality],
        )
    ]
    sets = [item.source for item in found]
    samples = samples_of_sets(sets, _workers(options, sum(len(one.samples) for one in sets)))
    return samples, [*(line for item in found for line in item.notices), *_read_otherwise(samples)]


def _read_otherwise(samples: Sequence[AuditSample]) -> list[str]:
    """How values are read that their number type alone does not tell."""
    entries = {sample.dataset: (sample.given, sample.entry) for sample in samples}
    return [
        f"{dataset}: {modality.name} is read as shards of it will be: {modality.kind}{reading_of(modality)}"
        for dataset, (given, entry) in entries.items()
        for before, modality in zip(given.modalities, entry.modalities, strict=True)
        if reading_of(before) != reading_of(modality)
    ]


def _workers(options: argparse.Namespace, samples: int) -> int:
    return default_workers(samples) if options.workers is None else options.workers


def _shard_folder(source: str) -> DataFolder | None:
    folder = parse_data_folder(source)
    return folder if isinstance(folder, RemoteFolder) or (folder / INDEX_NAME).is_file() else None


def _describer(options: argparse.Namespace) -> tuple[PatchDescriber | None, str]:
    """And why there is none, where one was wanted."""
    if not options.features:
        return None, ""
    settings = FeatureSettings(backbone=options.backbone, weights=options.weights)
    try:
        return PatchDescriber(settings, named_device(options.device)), ""
    except NoWeightsError as error:
        return None, str(error)


def _print(audited: Audited, file: Path, page: Path) -> None:
    for line in screen_lines(audited):
        print(line)
    print(summary_line(audited))
    fresh = len(audited.samples) - audited.kept
    kept = f", {audited.kept} measured before" if audited.kept else ""
    print(f"{audited.seconds:.1f} s, {fresh / max(audited.seconds, 1e-9):.0f} samples/s{kept}")
    print(f"results  {file}\npage     {page}")
