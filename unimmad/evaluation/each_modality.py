"""What each sensor is worth: an evaluation with all modalities, and one with each of them alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimmad.data.index import Split
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.evaluate import Evaluation
from unimmad.evaluation.modalities import classes_by_modality, classes_of_several
from unimmad.metrics.metrics import METRIC_KEYS, Metrics
from unimmad.report.file_names import file_name
from unimmad.report.formatting import cells, coverage, mean_cells
from unimmad.report.report import Mean, Report, mean_of_members
from unimmad.report.table import MARK, Table
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.text import one_line

FOLDER = "modalities"
ALL = "all"


@dataclass(frozen=True)
class ModalityRow:
    """One dataset evaluated with ``modality`` alone, or ``all``; over its classes with several modalities."""

    dataset: str
    modality: str
    mean: Mean


@dataclass(frozen=True)
class EachModality:
    """The whole evaluation, and what is left of it with one modality."""

    whole: Evaluation
    rows: tuple[ModalityRow, ...]
    left_out: tuple[str, ...]
    """``DATASET/CLASS`` names with one modality only, or without one that every sample has."""
    tables: tuple[Path, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        partial = tuple(
            f"{MARK} {row.dataset} with {row.modality}: the mean covers {coverage(row.mean)}"
            for row in self.rows
            if row.mean.incomplete
        )
        without = "left out, with one modality only or none that every sample has"
        return (*partial, f"{without}: {', '.join(self.left_out)}") if self.left_out else partial


def evaluate_each_modality(
    evaluate: Callable[..., Evaluation | None],
    data: Sequence[DataFolder],
    split: Split,
    output: Path,
    cache: ShardCache | None = None,
) -> EachModality | None:
    """Evaluate with all modalities into ``output`` and with each alone into ``output/modalities/NAME``.

    Args:
        evaluate: ``evaluate_checkpoint`` with all but output, modalities and classes given.
        data: the shard folders that it reads.
        split: the split that it reads.
        output: see above.
        cache: as for ``evaluate``.

    Returns:
        None where ``evaluate`` gives none: on ranks other than 0.

    Raises:
        ValueError: as ``evaluate_checkpoint``, or no class has several modalities and one in all its samples.
    """
    shards = ShardSet.open(data, cache)
    classes_of = classes_by_modality(shards, split)
    if not classes_of:
        partly = ", ".join(classes_of_several(shards, split))
        why = f"no modality is in every sample of {partly}" if partly else "no class has several modalities"
        raise ValueError(f"--modalities each: {one_line(why)}; evaluate without this option")
    whole = evaluate(output=output)
    alone = {
        name: evaluate(
            output=output / FOLDER / file_name(name), modalities=[name], classes=classes, published=False, other=None
        )
        for name, classes in classes_of.items()
    }
    if whole is None:
        return None
    reports = {name: evaluation.report for name, evaluation in alone.items() if evaluation is not None}
    several = {class_name for classes in classes_of.values() for class_name in classes}
    rows = tuple(_rows(whole.report, reports, several))
    left_out = tuple(name for name in shards.classes(split) if name not in several)
    tables = tuple(output / FOLDER / f"modalities.{suffix}" for suffix in ("csv", "md"))
    each = EachModality(whole, rows, left_out, tables)
    for path, text in zip(tables, (_csv(each), modality_table(each).to_markdown()), strict=True):
        write_text_aside(path, text)
    return each


def modality_table(each: EachModality) -> Table:
    """One row for each dataset and modality."""
    return Table(
        heads=("dataset", "modality", *METRIC_KEYS),
        rows=[(row.dataset, row.modality, *mean_cells(row.mean)) for row in each.rows],
        names=2,
        caption="What each modality is worth: mean of each dataset's classes.",
        notes=each.notes,
    )


def _rows(whole: Report, reports: Mapping[str, Report], several: Collection[str]) -> Iterator[ModalityRow]:
    undefined: Metrics = dict.fromkeys(METRIC_KEYS)
    for dataset in whole.datasets:
        wanted = [
            result.class_name for result in whole.classes_of(dataset) if f"{dataset}/{result.class_name}" in several
        ]
        for modality, report in {ALL: whole, **reports}.items():
            metrics_of = {result.class_name: result.metrics for result in report.classes_of(dataset)}
            if any(name in metrics_of for name in wanted):
                members = [metrics_of.get(name, undefined) for name in wanted]
                yield ModalityRow(dataset, modality, mean_of_members(modality, members, "classes"))


def _csv(each: EachModality) -> str:
    rows = [
        (row.dataset, row.modality, str(row.mean.members), *cells(row.mean.metrics, form=repr), coverage(row.mean))
        for row in each.rows
    ]
    return Table(("dataset", "modality", "classes", *METRIC_KEYS, "note"), rows).to_csv()
