"""The tables of a comparison: every class and mean, and what each method costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimmad.comparing.results import MethodResults, Result, Spread, best_of
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.formatting import NOT_PUBLISHED, UNDEFINED, cells
from unimmad.report.report import PublishedRow
from unimmad.report.table import Best, Table
from unimmad.serialization.atomic_write import write_text_aside

RULE = (
    "Mean and standard deviation over seeds. Bold (^ on a screen): the best, and what differs from it by no more than "
    "either's standard deviation; one seed has none, and between two such methods only an equal number is bold as well."
)
RULE_OF_ONE_SEED = (
    "One seed, so nobody knows the spread over seeds. Bold (^ on a screen): the best, and what equals it before "
    "rounding."
)


@dataclass(frozen=True)
class Failed:
    """A cell that has no result."""

    name: str
    reason: str


@dataclass(frozen=True)
class Compared:
    """All that a comparison found."""

    methods: tuple[MethodResults, ...]
    failed: tuple[Failed, ...] = ()
    published: tuple[PublishedRow, ...] = ()

    @property
    def has_several_seeds(self) -> bool:
        """Of any method."""
        return any(len(method.results) > 1 for method in self.methods)

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(dataset for method in self.methods for dataset, _ in method.classes))

    def groups(self) -> Iterator[tuple[str, dict[str, Mapping[str, Spread | None]]]]:
        """Each row group's name, and by method its metrics: each dataset's classes, its mean; the mean of all."""
        for dataset in self.datasets:
            classes = dict.fromkeys(name for m in self.methods for name in m.classes if name[0] == dataset)
            for name in classes:
                yield "/".join(name), {m.method: m.of_class(*name) for m in self.methods if name in m.classes}
            if len(classes) > 1:
                yield f"mean of {dataset}", self.of_dataset(dataset)
        if len(self.datasets) > 1:
            yield "mean of datasets", self.of_all()

    def of_dataset(self, dataset: str) -> dict[str, Mapping[str, Spread | None]]:
        """Of methods that have every class of it: the mean of fewer would be another number."""
        wanted = {name for name in self._classes() if name[0] == dataset}
        return {method.method: method.of_dataset(dataset) for method in self.methods if wanted <= set(method.classes)}

    def of_all(self) -> dict[str, Mapping[str, Spread | None]]:
        """Of methods that have every class."""
        wanted = self._classes()
        return {method.method: method.of_all() for method in self.methods if wanted <= set(method.classes)}

    def metric_table(self, means_only: bool = False) -> Table:
        """A row for each class or mean and method."""
        rows: list[list[str]] = []
        for name, of_methods in self.groups():
            if not means_only or self._is_mean(name):
                rows += _rows(name, of_methods)
        for row in self.published:
            rows.append([f"published, {row.dataset}", row.name, *cells(row.metrics, NOT_PUBLISHED)])
        notes = [
            RULE if self.has_several_seeds else RULE_OF_ONE_SEED,
            *(f"no result of {one.name}: {one.reason}" for one in self.failed),
        ]
        notes += [f"{row.name}: {row.source}. {row.note}" for row in self.published]
        return Table(("class", "method", *METRIC_KEYS), rows, names=2, notes=notes)

    def _is_mean(self, name: str) -> bool:
        """Or the only class of a dataset."""
        return name.startswith("mean of") or sum(one[0] == name.partition("/")[0] for one in self._classes()) == 1

    def _classes(self) -> set[tuple[str, str]]:
        return {name for method in self.methods for name in method.classes}

    def cost_table(self) -> Table:
        """A row a method; means over seeds."""
        heads = (
            "method",
            "image",
            "seeds",
            "steps",
            "minutes",
            "parameters",
            "trained",
            "GFLOP",
            "images/s",
            "peak GiB",
            "modalities joined",
        )
        rows = [_cost_row(method) for method in self.methods]
        devices = dict.fromkeys(result.cost.device for method in self.methods for result in method.results)
        notes = [
            "Minutes of training, evaluations on its way included; millions of parameters, a bank's numbers included; "
            "10^9 operations a sample (2 for each multiply-add of convolutions and matrix products); images scored a "
            f"second, in batches; most memory of a scoring process. On {'; '.join(devices)}.",
        ]
        return Table(heads, rows, notes=notes)

    def csv(self) -> Table:
        """One number a row, at full precision."""
        rows = [
            [name, method, key, repr(spread.mean), "" if spread.std is None else repr(spread.std)]
            for name, of_methods in self.groups()
            for method, metrics in of_methods.items()
            for key, spread in metrics.items()
            if spread is not None
        ]
        return Table(("class", "method", "metric", "mean", "std"), rows, names=3)


def _rows(name: str, of_methods: Mapping[str, Mapping[str, Spread | None]]) -> list[list[str]]:
    best = {key: best_of({method: metrics[key] for method, metrics in of_methods.items()}) for key in METRIC_KEYS}
    return [
        [name, method, *(_cell(metrics[key], len(of_methods) > 1 and method in best[key]) for key in METRIC_KEYS)]
        for method, metrics in of_methods.items()
    ]


def _cell(spread: Spread | None, is_best: bool) -> str:
    return Best(_number(spread)) if is_best and spread is not None else _number(spread)


def _number(spread: Spread | None) -> str:
    if spread is None:
        return UNDEFINED
    return f"{spread.mean:.3f}" if spread.std is None else f"{spread.mean:.3f} ± {spread.std:.3f}"


def _cost_row(method: MethodResults) -> list[str]:
    results: Sequence[Result] = method.results

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    minutes = [result.minutes for result in results if result.minutes is not None]
    return [
        method.method,
        results[0].report.header.get("image size", UNDEFINED).partition(" ")[0],
        str(len(results)),
        f"{mean([result.steps for result in results]):.0f}",
        f"{mean(minutes):.1f}" if minutes else UNDEFINED,
        f"{results[0].cost.parameters / 1e6:.1f}",
        f"{results[0].cost.trained / 1e6:.1f}",
        f"{mean([result.cost.gflop for result in results]):.1f}",
        f"{mean([result.cost.images_per_second for result in results]):.1f}",
        f"{max(result.cost.peak_gib for result in results):.1f}",
        results[0].report.header.get("modalities joined", UNDEFINED),
    ]


def write_tables(compared: Compared, folder: Path) -> tuple[Path, ...]:
    """Write comparison.md, .tex, .csv and cost.csv into ``folder``; gives their paths.

    Raises:
        ValueError: the folder can't be written to.
    """
    metrics, cost = compared.metric_table(), compared.cost_table()
    contents = {
        "comparison.md": f"{metrics.to_markdown()}\n{cost.to_markdown()}",
        "comparison.tex": f"{metrics.to_latex()}\n{cost.to_latex()}",
        "comparison.csv": compared.csv().to_csv(),
        "cost.csv": cost.to_csv(),
    }
    for name, content in contents.items():
        write_text_aside(folder / name, content)
    return tuple(folder / name for name in contents)
