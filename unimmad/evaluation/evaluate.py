"""A checkpoint's report: tables and pictures in a folder. What ``unimmad evaluate`` and the trainer call."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from unimmad import __version__
from unimmad.checkpoint.added_classes import with_added_classes
from unimmad.checkpoint.grown_banks import with_feedback
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.state import package_version
from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.config import EvaluationSettings, Precision, TileSettings
from unimmad.data.index import Split
from unimmad.data.location import DataFolder
from unimmad.data.mask_resize import MaskRule
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog, summary
from unimmad.data.roi import given_rois
from unimmad.data.views import Geometry
from unimmad.evaluation.geometry import scoring_geometry, with_tiles
from unimmad.evaluation.header import data_fact, report_header, resizing_facts, rois_in_words
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.modalities import keep_modalities
from unimmad.evaluation.resume import PartialResults, evaluation_fingerprint
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import chosen_precision, scoring_form
from unimmad.evaluation.shared_drawing import chosen_samples, draw_classes, sample_picture
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.model.backends.convolution import transforms_are_used
from unimmad.ranks.exchange import ALONE, Ranks
from unimmad.report.comparison import Comparison, OtherReport, compare, report_in, write_comparison
from unimmad.report.figures import SamplePicture
from unimmad.report.measured_at import published_beside
from unimmad.report.pictures import Pictures
from unimmad.report.published import published_rows
from unimmad.report.report import ClassResult, Report
from unimmad.report.scored_class import ScoredClass
from unimmad.report.tables import write_image_scores, write_tables

NOT_IN_NUMBERS = frozenset({"batch_size", "pictures_per_class", "leader_cache_mib"})
"""Evaluation settings that change no number."""


@dataclass(frozen=True)
class Evaluation:
    """A finished report and where its files lie."""

    report: Report
    tables: tuple[Path, ...]
    overview: Path | None
    page: Path
    """All tables and pictures as HTML."""
    scored: tuple[ScoredClass, ...]
    """Image scores, labels and keys of each class."""
    comparison: Comparison | None = None


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint,
    data: Sequence[DataFolder],
    output: Path,
    *,
    device: torch.device,
    workers: int,
    split: Split = "test",
    mask_resize: MaskRule | None = None,
    progress: bool = True,
    precision: Precision | None = None,
    modalities: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    no_resume: bool = False,
    only_same_data: bool = False,
    only_same_step: bool = False,
    scratch_dir: Path | None = None,
    published: bool = False,
    other: OtherReport | None = None,
    cache: ShardCache | None = None,
    on_error: OnError = "stop",
    roi: Path | None = None,
    tiles: TileSettings | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """Evaluate on ``split`` of the shard folders ``data`` and write tables and pictures into ``output``.

    Each finished class is kept in ``output`` until the report is complete. An evaluation that was interrupted
    continues after its last finished class, where checkpoint, data and settings are the same, and says so. The
    checkpoint's model is brought into its inference form.

    Args:
        workers: loader processes of each rank.
        mask_resize: how masks come to the model's size; None: as the recipe says.
        precision: None: ``default_precision``.
        modalities: names of those to evaluate with; None: all.
        classes: with ``modalities``, the ``DATASET/CLASS`` names to evaluate; None: all.
        no_resume: begin again even where an interrupted evaluation could go on.
        only_same_data: refuse to replace a report in ``output`` that is on other data or another split.
        only_same_step: the same for one on another checkpoint of the run.
        scratch_dir: see ``MetricAccumulator``.
        published: put published rows beside ours.
        other: a report to compare with.
        cache: for shards from URLs; None: the default one.
        on_error: ``skip`` leaves corrupt samples out; the report's header says how many.
        roi: where to look, in place of the data's own regions of interest; see ``data.roi.given_rois``.
        tiles: to score by, in place of the recipe's; thresholds of others do not hold.
        ranks: those that share the work, all with the same arguments but for the device's number.

    Returns:
        None on ranks other than 0, which alone writes.

    Raises:
        ValueError: the data can't be read or don't fit the model, ``output`` can't be written, nothing is published
            for any of the datasets, ``other`` has none of their classes, or a report is not to be replaced.
    """
    checkpoint = with_feedback(with_added_classes(checkpoint))
    shards = ShardSet.open(data, cache, checkpoint.trained_datasets)
    if only_same_data and ranks.is_main:
        _check_same(output, "data", data_fact(data, split))
    if only_same_step and ranks.is_main:
        _check_same(output, "checkpoint", checkpoint.folder.name)
    untested = [] if classes is not None else list(_untested(checkpoint, shards, split))
    if modalities is not None:
        shards = keep_modalities(shards, split, modalities, classes)
    if roi is not None:
        shards = shards.with_rois(given_rois(roi, shards.classes(split)))
    refs_of = shards.classes(split)
    if other is not None:
        other.check_common(refs_of)
    beside = published_rows(_datasets(refs_of), checkpoint.recipe.method) if published else ()
    own_tiles, checkpoint = checkpoint.recipe.evaluation.tiles, _with_tiles(checkpoint, tiles)
    settings, precision = checkpoint.recipe.evaluation, chosen_precision(precision, device)
    mask_resize, geometry = mask_resize or settings.mask_resize, scoring_geometry(checkpoint.recipe)
    thresholds = _held_thresholds(checkpoint, shards, modalities, precision, own_tiles.same_views(settings.tiles))
    kept = None if thresholds is None else thresholds.thresholds
    none_holds = "" if kept is None else kept.tiles_note(settings.tiles, own_tiles)
    thresholds = None if none_holds else thresholds
    facts = _number_facts(settings, geometry, split, mask_resize, precision, device)
    facts["model"] = checkpoint.recipe.model.model_dump(mode="json", exclude_defaults=True)  # not all are in weights
    if thresholds is not None and thresholds.thresholds is not None:
        facts["thresholds"] = thresholds.thresholds.model_dump(mode="json")
    fingerprint = evaluation_fingerprint(checkpoint.weights_digest, shards, facts)
    ranks.check_same(fingerprint, "another checkpoint, other data, settings, kind of device or library versions")
    results = PartialResults(output, fingerprint)
    if no_resume and ranks.is_main:
        results.remove()
    finished = results.load() if ranks.is_main else {}
    if finished and progress:
        _say(
            f"{len(finished)} of {len(refs_of)} classes were finished by an interrupted evaluation: {_names(finished)}"
        )
    skip_log = SkipLog("it is left out")
    model = scoring_form(checkpoint.model, settings, device)
    scored_classes = evaluate_classes(
        model,
        shards,
        split,
        settings,
        device=device,
        workers=workers,
        mask_resize=mask_resize,
        geometry=geometry,
        progress=progress and ranks.is_main,
        precision=precision,
        finished=finished,
        scratch_dir=scratch_dir,
        thresholds=thresholds,
        on_error=on_error,
        skip_log=skip_log,
        ranks=ranks,
    )
    done: list[ScoredClass] = []
    with closing(scored_classes):  # its threads and its progress bar end with it, however this loop ends
        for scored in scored_classes:
            whole = len(scored.keys) + scored.outside == len(refs_of[scored.class_name])
            if whole and scored.class_name not in finished:  # else the next run would not know what was left out
                results.save(scored)
            done.append(scored)
    skipped = summary(sum(ranks.gather(skip_log.shards), Counter()))
    if ranks.is_main and not done:
        raise ValueError(f"no sample of the {split} split can be read: {skipped}")

    def samples_of(scored: ScoredClass) -> list[SamplePicture]:
        draw = partial(
            sample_picture,
            model,
            shards,
            settings=settings,
            device=device,
            precision=precision,
            geometry=geometry,
            thresholds=thresholds,
        )
        return chosen_samples(scored, refs_of[scored.class_name], settings.pictures_per_class, draw)

    pictures = Pictures(output, model.kernel_sizes)
    for scored, drawn in draw_classes(done, samples_of, ranks, progress and ranks.is_main):
        pictures.add(scored, drawn)
    if not ranks.is_main:
        return None
    header = report_header(checkpoint, data, shards, split, device, mask_resize, precision, modalities)
    resizing = {scored.class_name: scored.resizing for scored in done}
    trained_whole = not checkpoint.recipe.training.tiles.size
    header |= resizing_facts(resizing, geometry, mask_resize, settings.resolution, trained_whole)
    if thresholds is not None:
        header["thresholds"] = thresholds.in_words()
    elif none_holds:
        header["thresholds"] = none_holds
    if regions := rois_in_words(shards, refs_of, done):
        header["regions of interest"] = regions
    if skipped:
        header["left out"] = skipped
    published_too = published_beside(beside, settings.resolution)
    report = Report(header, (*(scored.result for scored in done), *untested), published_too)
    earlier = report_in(output)
    comparison = None if other is None else compare(report, other)
    compared = () if comparison is None else write_comparison(comparison, output)
    sources = {(ref.entry.dataset, ref.entry.key): ref.entry.source for refs in refs_of.values() for ref in refs}
    tables = (*write_tables(report, output), write_image_scores(done, output, sources), *compared)
    page = pictures.finish(report, tables, comparison)
    if earlier is not None:
        pictures.remove_others(earlier)
    results.remove()
    return Evaluation(report, tables, pictures.overview, page, tuple(done), comparison)


def _with_tiles(checkpoint: LoadedCheckpoint, tiles: TileSettings | None) -> LoadedCheckpoint:
    return replace(checkpoint, recipe=with_tiles(checkpoint.recipe, tiles))


def _held_thresholds(
    checkpoint: LoadedCheckpoint,
    shards: ShardSet,
    modalities: Sequence[str] | None,
    precision: Precision,
    same_tiles: bool,
) -> HeldThresholds | None:
    """Those beside the checkpoint; None where there are none, or modalities were chosen. ``same_tiles``: whether images
    are scored by the checkpoint's own."""
    if modalities is not None:
        return None
    thresholds = load_thresholds(checkpoint.folder)
    if thresholds is None and not checkpoint.added:
        return None
    looks_at_class = checkpoint.model.looks_at_class
    return HeldThresholds(thresholds, shards.datasets, looks_at_class, precision, checkpoint.added, same_tiles)


def _untested(checkpoint: LoadedCheckpoint, shards: ShardSet, split: Split) -> Iterator[ClassResult]:
    """Trained classes of these datasets without an image in ``split``: no mean is over all without them."""
    trained_on = checkpoint.trained_on
    trained = [*shards.classes("train"), *(trained_on.classes if trained_on is not None else ())]
    tested = shards.classes(split)
    for name in dict.fromkeys(trained):
        dataset, _, class_name = name.partition("/")
        if name not in tested and dataset in shards.datasets:
            yield ClassResult(dataset, shards.datasets[dataset].field, class_name, 0, 0, dict.fromkeys(METRIC_KEYS))


def _check_same(output: Path, what: str, now: str) -> None:
    """
    Raises:
        ValueError: the report that lies there is on other data, or on another checkpoint, known by its folder's name.
    """
    earlier = report_in(output)
    before = now if earlier is None else earlier.header.get(what, now)
    if what == "checkpoint":
        before = Path(before).name
    if before != now:
        raise ValueError(f"{output} holds the report on {before}; choose a folder for {now} with --output-dir")


def _number_facts(
    settings: EvaluationSettings,
    geometry: Geometry,
    split: Split,
    mask_resize: MaskRule,
    precision: Precision,
    device: torch.device,
) -> dict[str, object]:
    """All that changes a number, beside the model and the data."""
    return {
        "geometry": asdict(geometry),
        "settings": settings.model_dump(mode="json", exclude=set(NOT_IN_NUMBERS)),
        "split": split,
        "mask_resize": mask_resize,
        "precision": precision,
        "device": device.type,
        "transformed convolutions": device.type == "cpu" and transforms_are_used(),
        "versions": {"unimmad": __version__, **{package: package_version(package) for package in ("torch", "numpy")}},
    }


def _datasets(class_names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in class_names))


def _names(finished: Iterable[str]) -> str:
    names = list(finished)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _say(text: str) -> None:
    """A line that does not disturb a progress bar."""
    tqdm.write(text, file=sys.stderr)
