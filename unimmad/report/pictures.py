"""All pictures of an evaluation, written class by class into one folder, and the page that holds them.

::

    FOLDER/report.html                the page
    FOLDER/overview.png               one sample of each class
    FOLDER/pictures/SET-CLASS.png     heat maps, failures first
    FOLDER/curves/SET-CLASS.png       ROC, PRO, histograms of scores
    FOLDER/experts/expert_map.png     who uses which leader
    FOLDER/experts/class_overlap.png
    FOLDER/experts/*.csv              the same in numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unimmad.report.at_threshold import at_threshold_table
from unimmad.report.class_pictures import DrawnClass
from unimmad.report.comparison import Comparison, difference_table
from unimmad.report.drawing import Limits
from unimmad.report.expert_map import save_class_overlap, save_expert_map
from unimmad.report.expert_usage import ClassUsage, rows_by_modality
from unimmad.report.figures import SamplePicture, save_overview
from unimmad.report.file_names import file_name
from unimmad.report.html_page import Picture, Section, save_page
from unimmad.report.report import Report
from unimmad.report.scored_class import ScoredClass
from unimmad.report.specialisation import (
    Specialisation,
    datasets_csv,
    gate_names,
    leaders_csv,
    overlap_csv,
    specialisation,
)
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_aside, write_text_aside

PAGE = "report.html"
OVERVIEW = "overview.png"
HEAT_MAPS = "pictures"
CURVES = "curves"
EXPERTS = "experts"


class Pictures:
    """Writes each class's pictures as they come; only what the last pictures need is kept."""

    def __init__(self, folder: Path, kernel_sizes: Sequence[int]) -> None:
        """``kernel_sizes``: those of the model's branches, in its order; none where it routes nothing."""
        self._folder = folder
        self._kernel_sizes = tuple(kernel_sizes)
        self._of_class: dict[tuple[str, str], list[Picture]] = {}
        self._in_overview: list[tuple[SamplePicture, Limits]] = []
        self._usages: list[ClassUsage] = []

    def add(self, scored: ScoredClass, drawn: DrawnClass) -> None:
        """Write one class's heat maps and curves.

        Raises:
            ValueError: the folder cannot be written to.
        """
        if scored.usage is not None:
            self._usages.append(scored.usage)
        file = f"{file_name(*scored.names)}.png"
        written = self._of_class.setdefault(scored.names, [])
        written.append(self._save(CURVES, file, drawn.curves, _CURVES_CAPTION))
        if drawn.heat_maps is not None and drawn.typical is not None:
            written.append(self._save(HEAT_MAPS, file, drawn.heat_maps, _HEAT_MAPS_CAPTION))
            self._in_overview.append((drawn.typical, drawn.limits))

    def finish(self, report: Report, tables: Sequence[Path], comparison: Comparison | None = None) -> Path:
        """Write what shows all classes, then the page; returns the page.

        Args:
            report: of the classes added.
            tables: the report's other files, to be linked.
            comparison: against another report, to be shown.

        Raises:
            ValueError: the folder cannot be written to.
        """
        overview = self._folder / OVERVIEW if self._in_overview else None
        if overview is not None:
            samples, limits = zip(*self._in_overview, strict=True)
            save_overview(samples, overview, limits)
        page = self._folder / PAGE
        sections = [] if comparison is None else [_comparison_section(comparison)]
        if (table := at_threshold_table(report)) is not None:
            sections.append(
                Section("At the calibrated thresholds", table.caption, tables=(replace(table, caption=""),))
            )
        if self._kernel_sizes:
            sections.append(self._experts())
        save_page(
            report,
            page,
            class_pictures=self._of_class,
            overview=overview,
            sections=sections,
            files=tables,
        )
        return page

    def remove_others(self, earlier: Report) -> None:
        """Remove the pictures of a report that lay in the folder before, but for those that were written since."""
        named = {picture.path for pictures in self._of_class.values() for picture in pictures}
        if self.overview is not None:
            named.add(self.overview)
        files = [f"{file_name(result.dataset, result.class_name)}.png" for result in earlier.classes]
        before = [self._folder / folder / file for folder in (HEAT_MAPS, CURVES) for file in files]
        for path in [self._folder / OVERVIEW, *before]:
            if path not in named:
                path.unlink(missing_ok=True)

    @property
    def overview(self) -> Path | None:
        return self._folder / OVERVIEW if self._in_overview else None

    def _save(self, folder: str, file: str, content: bytes, caption: str) -> Picture:
        path = self._folder / folder / file
        write_aside(path, lambda temporary: temporary.write_bytes(content))
        return Picture(path, caption)

    def _experts(self) -> Section:
        levels = self._usages[0].counts_MGL.shape[1] // len(self._kernel_sizes)
        found = specialisation(self._usages, gate_names(self._kernel_sizes, levels))
        folder = self._folder / EXPERTS
        expert_map, overlap = folder / "expert_map.png", folder / "class_overlap.png"
        save_expert_map(rows_by_modality(self._usages), found.gates, len(self._kernel_sizes), expert_map)
        save_class_overlap(found.classes, found.class_overlap_CC, overlap)
        contents = {"leaders.csv": leaders_csv, "datasets.csv": datasets_csv, "class_overlap.csv": overlap_csv}
        for name, as_csv in contents.items():
            write_text_aside(folder / name, as_csv(found))
        return Section(
            "Experts",
            _EXPLANATION,
            pictures=(
                Picture(expert_map, "Expert map: leaders across, datasets and modalities down."),
                Picture(overlap, "Overlap of the classes' usage of leaders: 1 the same, 0 none in common."),
            ),
            tables=(_gate_table(found), _dataset_table(found)),
            files=tuple(folder / name for name in contents),
        )


_CURVES_CAPTION = "Each label's share of scores in each bin, ROC and PRO curves; dashed: the threshold of F1max."
_HEAT_MAPS_CAPTION = "Failures first: highest-scoring normals, lowest-scoring anomalies, then ordinary samples."
_EXPLANATION = (
    "Each token (one modality of one sample, at one level) is routed to a few leaders of each branch. A disc's area is "
    "the share of a row's tokens that go to that leader; discs of neighbours touch where all tokens do. Leaders of "
    "different panels are different parameters. Entropies are fractions of the largest possible one. Datasets weigh "
    "the same, and so do the classes of one and the modalities of a class."
)


def _gate_table(found: Specialisation) -> Table:
    """How many leaders each gate uses, and how much they are shared among datasets."""
    rows = []
    for gate, load_L, entropy_L in zip(found.gates, found.load_GL, found.leader_entropy_GL, strict=True):
        used_L = load_L > 0
        entropy = float(np.average(entropy_L[used_L], weights=load_L[used_L]))
        rows.append((gate, f"{used_L.sum()} of {len(load_L)}", f"{load_L.max():.3f}", f"{entropy:.3f}"))
    heads = ("gate", "leaders in use", "largest load", "entropy over datasets")
    caption = "Leaders of each gate; entropies are weighted by load: 0 each leader serves one dataset, 1 all alike."
    return Table(heads, rows, caption=caption)


def _dataset_table(found: Specialisation) -> Table:
    """Over how many leaders each dataset is spread, mean over gates."""
    rows = tuple(
        (name, f"{found.dataset_entropy_GD[:, d].mean():.3f}", f"{found.effective_leaders_GD[:, d].mean():.1f}")
        for d, name in enumerate(found.datasets)
    )
    caption = "Spread of each dataset over leaders, mean of all gates: 1 (or all leaders) uses every leader alike."
    return Table(("dataset", "entropy over leaders", "effective leaders"), rows, caption=caption)


def _comparison_section(comparison: Comparison) -> Section:
    """This report minus the other, and what else differs between them."""
    table = difference_table(comparison)
    return Section("Comparison", "Over the classes that both reports have.", tables=(table,))
