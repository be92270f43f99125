"""Evaluations of many classes, images and regions: time and memory grow no faster than they do."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from unimmad.data.sample import Sample
from unimmad.evaluation.collecting import ClassScores, ScoredBatch
from unimmad.metrics.metrics import MetricAccumulator
from unimmad.report import expert_map
from unimmad.report.class_pictures import draw_class
from unimmad.report.expert_usage import ClassUsage, UsageRow
from unimmad.report.figures import SamplePicture, save_overview
from unimmad.report.pictures import Pictures
from unimmad.report.report import Report
from unimmad.report.scored_class import ScoredClass, read_scored, scored_entry
from unimmad.report.selection import failures_first
from unimmad.report.tables import write_image_scores, write_tables


def picture(number: int) -> SamplePicture:
    rng = np.random.default_rng(number)
    marked = np.zeros((32, 32), dtype=bool)
    marked[4:9, 4:9] = True
    images = (("rgb", rng.random((32, 32, 3))),)
    return SamplePicture(f"parts/class_{number}", "000", "bent", 0.5, images, rng.random((32, 32)), marked)


def test_the_overlap_of_many_classes_is_no_larger_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[float] = []

    def saved(figure: Figure, _: Path) -> None:
        sides.append(max(figure.get_size_inches()))

    monkeypatch.setattr(expert_map, "save_figure", saved)
    for count in (60, 200, 300):
        names = [f"parts/class_{number}" for number in range(count)]
        expert_map.save_class_overlap(names, np.eye(count), tmp_path / "overlap.png")
    assert 60 * 0.2 < sides[0] < sides[1] <= sides[2] < 25


def test_the_expert_map_of_many_data_sets_is_no_larger_picture() -> None:
    frequency_GL = np.full((2, 8), 1 / 8)
    heights = []
    for count in (10, 60, 200):
        rows = [UsageRow(f"set_{number}", "rgb", frequency_GL) for number in range(count)]
        heights.append(expert_map.expert_map_figure(rows, ("level 1, 1 x 1", "level 1, 3 x 3"), 2).get_figheight())
    assert heights[0] < heights[1] < heights[2] < 25


def test_no_layout_is_solved_for_the_overview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes time which grows faster than the number of classes."""

    def solved(*_: object) -> None:
        raise AssertionError("a layout was solved")

    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", solved)
    save_overview([picture(number) for number in range(3)], tmp_path / "overview.png")
    assert (tmp_path / "overview.png").is_file()


def dots(side: int) -> np.ndarray:
    """A quarter of the pixels, each a region of its own."""
    marked = np.zeros((side, side), dtype=bool)
    marked[::2, ::2] = True
    return marked


def test_65536_regions_in_one_mask() -> None:
    """Regions of one pixel: the PRO curve is the ROC curve, so AUPRO is what the scores' ranks say."""
    rng = np.random.default_rng(0)
    map_HW, normal_HW = rng.random((2, 512, 512), dtype=np.float32)
    started = time.process_time()
    accumulator = MetricAccumulator()
    accumulator.add(map_HW, dots(512), 1.0, 1)
    accumulator.add(normal_HW, np.zeros((512, 512)), 0.0, 0)
    metrics, curves = accumulator.compute(), accumulator.curves()
    assert time.process_time() - started < 5
    assert curves is not None
    np.testing.assert_allclose(curves.pro, curves.tpr, atol=1e-12)
    normal_N = np.sort(np.concatenate([map_HW[~dots(512)], normal_HW.reshape(-1)]))
    above_A = 1 - np.searchsorted(normal_N, map_HW[dots(512)], side="right") / len(normal_N)
    assert metrics["AUPRO"] == pytest.approx(np.maximum(0.3 - above_A, 0).mean() / 0.3, abs=1e-4)


def scores_of(images: int, batch: int = 50) -> ClassScores:
    """A class of maps of 8 x 8, every second one anomalous."""
    rng = np.random.default_rng(0)
    scores = ClassScores("parts/x", "industry", leaders=8, scratch_dir=None)
    for first in range(0, images, batch):
        samples = tuple(_sample(first + place) for place in range(batch))
        maps = rng.random((batch, 8, 8), dtype=np.float32)
        leaders_TGK = rng.integers(0, 8, (batch, 4, 2))
        scores.add(ScoredBatch(samples, maps, tuple(maps.max(axis=(1, 2)).tolist()), leaders_TGK))
    return scores


def _sample(number: int) -> Sample:
    mask_HW = torch.zeros(8, 8, dtype=torch.bool)
    mask_HW[2:4, 2:4] = bool(number % 2)
    return Sample(
        key=f"{number:06d}",
        dataset="parts",
        class_name="parts/x",
        defect="bent" if number % 2 else "good",
        anomalous=bool(number % 2),
        modalities=("rgb",),
        slots=(0,),
        images_MCHW=torch.empty(0),
        mask_HW=mask_HW,
    )


def test_20_000_images_of_one_class(tmp_path: Path) -> None:
    """Their metrics, curves, table, and what is chosen of them for pictures."""
    started = time.process_time()
    scored = scores_of(20_000).scored()
    again = read_scored(json.loads(json.dumps(scored_entry(scored))))
    assert (again.image_scores == scored.image_scores).all()
    write_image_scores([scored], tmp_path)
    assert len((tmp_path / "image_scores.csv").read_text().splitlines()) == 20_001
    chosen = failures_first(scored.image_scores, scored.labels, scored.defects, 8)
    assert len(chosen) == 8
    draw_class(scored, ())
    assert time.process_time() - started < 20


def classes(count: int) -> list[ScoredClass]:
    rng = np.random.default_rng(0)
    one = scores_of(50).scored()
    made = []
    for number in range(count):
        result = replace(one.result, class_name=f"class_{number:04d}")
        usage = ClassUsage("parts", result.class_name, ("rgb",), rng.integers(0, 9, (1, 16, 8)), np.array([50]))
        made.append(replace(one, result=result, usage=usage))
    return made


def cpu_seconds_of_report(scored: Sequence[ScoredClass], folder: Path) -> float:
    drawn = draw_class(scored[0], [picture(0)])
    started = time.process_time()
    pictures = Pictures(folder, (1, 3, 5, 7))
    for one in scored:
        pictures.add(one, drawn)
    report = Report({}, tuple(one.result for one in scored))
    page = pictures.finish(report, write_tables(report, folder))
    text = page.read_text()
    assert all(one.result.class_name in text for one in scored)
    return time.process_time() - started


@pytest.mark.long
def test_the_report_of_200_classes(tmp_path: Path) -> None:
    few, many = (cpu_seconds_of_report(classes(count), tmp_path / f"{count}") for count in (50, 200))
    assert many < 6 * few
    assert many < 60
    assert (tmp_path / "200" / "report.html").stat().st_size < 2**20
