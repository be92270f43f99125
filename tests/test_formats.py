"""Files that earlier versions wrote are read, other formats are refused, and docs/formats.md says which there are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unimmad.checkpoint import added_classes, calibration_scores, feedback, monitoring, normal_maps, thresholds
from unimmad.checkpoint import folder as checkpoint_folder
from unimmad.checkpoint.folder import STATE_NAME, read_state
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, load_thresholds
from unimmad.checkpoint.trained_on import read_trained_on
from unimmad.comparing import results
from unimmad.config import parse_recipe
from unimmad.data import index
from unimmad.data.index import INDEX_NAME, parse_index
from unimmad.data.reading import resized_cache
from unimmad.inference.export import metadata
from unimmad.inference.export.metadata import ExportMetadata
from unimmad.report import report

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
WRITTEN = Path(__file__).parent / "fixtures" / "formats"
"""By version 0.1.0, ``result.json`` by 0.2.0; ``export.json`` holds the metadata of an exported file."""


def _read_state(content: Any, folder: Path) -> Any:
    (folder / STATE_NAME).write_text(json.dumps(content))
    return read_state(folder)


def _read_thresholds(content: Any, folder: Path) -> Any:
    (folder / THRESHOLDS_NAME).write_text(json.dumps(content))
    return load_thresholds(folder)


def _read_index(content: Any, _: Path) -> Any:
    return parse_index(json.dumps(content).encode(), INDEX_NAME)


def _read_report(content: Any, _: Path) -> Any:
    return report.from_json(json.dumps(content))


def _read_export(content: Any, _: Path) -> Any:
    return ExportMetadata.from_strings({key: json.dumps(value) for key, value in content.items()}, "model.onnx")


def _read_result(content: Any, folder: Path) -> Any:
    (folder / results.NAME).write_text(json.dumps(content))
    return results.read_result(folder / results.NAME)


READ: dict[str, Callable[[Any, Path], Any]] = {
    STATE_NAME: _read_state,
    INDEX_NAME: _read_index,
    THRESHOLDS_NAME: _read_thresholds,
    "report.json": _read_report,
    "export.json": _read_export,
    results.NAME: _read_result,
}
REFUSE_UNKNOWN_KEYS = {INDEX_NAME, THRESHOLDS_NAME}


def written(name: str) -> Any:
    return json.loads((WRITTEN / name).read_text())


def test_a_checkpoint_of_0_1_0_is_read(tmp_path: Path) -> None:
    state = _read_state(written(STATE_NAME), tmp_path)
    assert state["versions"]["unimmad"] == "0.1.0"
    recipe = parse_recipe(state["recipe"], STATE_NAME)
    assert (recipe.name, recipe.model.leaders, recipe.training.learning_rate) == ("paper", 32, 0.001)
    trained_on = read_trained_on(state, STATE_NAME)
    assert trained_on is not None
    assert trained_on.classes == ("food/bagel",)
    assert [modality.name for modality in trained_on.datasets["food"].modalities] == ["rgb", "depth"]


def test_what_format_1_got_later_may_be_missing(tmp_path: Path) -> None:
    state = written(STATE_NAME)
    del state["format"], state["composing"], state["trained_on"]["digests"]
    trained_on = read_trained_on(_read_state(state, tmp_path), STATE_NAME)
    assert trained_on is not None
    assert trained_on.digests == {}
    del state["trained_on"]
    assert read_trained_on(_read_state(state, tmp_path), STATE_NAME) is None
    found = written(THRESHOLDS_NAME)
    del found["precision"]
    assert _read_thresholds(found, tmp_path).precision is None


def test_shards_thresholds_a_report_and_an_export_of_0_1_0_are_read(tmp_path: Path) -> None:
    samples = _read_index(written(INDEX_NAME), tmp_path).samples
    assert {sample.split for sample in samples} == {"train", "test"}
    assert any(sample.mask for sample in samples)
    found = _read_thresholds(written(THRESHOLDS_NAME), tmp_path)
    assert (found.classes["food/bagel"].value, found.precision) == (0.3, "fp32")
    assert _read_report(written("report.json"), tmp_path).classes[0].metrics["AUPRO"] == 0.5
    assert _read_export(written("export.json"), tmp_path).thresholds == found


def test_a_result_of_0_2_0_is_read(tmp_path: Path) -> None:
    found, _ = _read_result(written(results.NAME), tmp_path)
    assert (found.method, found.seed, found.steps, found.cost.parameters) == ("rd", 1, 10, 2_000_000)
    assert found.report.classes[0].metrics["AUPRO"] == 0.5


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused_in_one_line(name: str, number: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format") as told:
        READ[name]({**written(name), "format": number}, tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", READ)
def test_unknown_keys_are_refused_or_passed_over_as_the_page_says(name: str, tmp_path: Path) -> None:
    content = {**written(name), "added_later": 1}
    if name in REFUSE_UNKNOWN_KEYS:
        with pytest.raises(ValueError, match="added_later"):
            READ[name](content, tmp_path)
    else:
        READ[name](content, tmp_path)


def test_the_page_has_the_codes_numbers() -> None:
    rows = re.findall(r"^\| (\w+)[^|]*\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert {name: int(number) for name, number in rows} == {
        "checkpoint": checkpoint_folder.FORMAT,
        "shards": index.FORMAT,
        "thresholds": thresholds.FORMAT,
        "normal": normal_maps.FORMAT,
        "what": monitoring.FORMAT,
        "added": added_classes.FORMAT,
        "scores": calibration_scores.FORMAT,
        "feedback": feedback.FORMAT,
        "report": report.FORMAT,
        "result": results.FORMAT,
        "exported": metadata.FORMAT,
    }
    assert f"`{resized_cache._MARK.decode()}`" in PAGE.read_text()
