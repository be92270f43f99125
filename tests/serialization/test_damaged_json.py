"""Whatever is done to a JSON file that the package reads, it is read, or refused by a ValueError of one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.disk_sets import make_multimodal
from hypothesis import HealthCheck, given, settings
from mutations import damaged

from unimmad.checkpoint.calibration_scores import SCORES_NAME, load_scores, save_scores
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.digests import DIGESTS_NAME, file_digest, verify_checkpoint
from unimmad.checkpoint.folder import LATEST, STATE_NAME, CheckpointFolder, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.state import FITTED, Layout, build_state, write_index_and_state
from unimmad.checkpoint.tensor_slices import TensorReader, TensorSlice, write_pieces
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, load_thresholds
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.checkpoint.writing import write_model
from unimmad.comparing.results import read_cost, read_result
from unimmad.config import EvaluationSettings, TrainingSettings, load_recipe, parse_recipe
from unimmad.data.image_facts import ImageFacts
from unimmad.data.index import INDEX_NAME, load_index
from unimmad.data.layouts import find_set
from unimmad.data.layouts.own.rows import read_rows
from unimmad.data.location import recorded_data_folder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.duplicates import Look
from unimmad.data.writing.shard_notes import FinishedShard, ShardNotes, sha256_of
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder
from unimmad.evaluation.resume import PartialResults
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.export.metadata import ExportMetadata
from unimmad.inference.renewed_thresholds import renewed
from unimmad.launching.failure_notes import first_failure, note_failures
from unimmad.launching.run_record import RunRecord
from unimmad.methods.memory_bank import MemoryBank
from unimmad.methods.registry import METHODS, build_method, settings_of
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.monitoring.lines import LARGEST, parse_line
from unimmad.parallel.deepspeed_config import engine_config, read_deepspeed_config
from unimmad.report.comparison import OtherReport, compare, difference_table, read_report
from unimmad.report.report import ClassResult, PublishedRow, Report, class_entry, to_json
from unimmad.report.tables import screen_table
from unimmad.serialization.lock_holder import Holder, find_lock
from unimmad.serving.review import Review

SHORT, LONG = 40, 20_000
"""Cases of each kind of file, and of all together."""

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats"
Read = Callable[[bytes], object]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of file: a whole one, and what the package does with its bytes."""

    document: Any
    read: Read


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_shards([find_set(make_multimodal(root / "food")).source], root / "shards", progress=False)
    return root / "shards"


@pytest.fixture
def kinds(shards: Path, tmp_path: Path) -> dict[str, Kind]:
    makers = (_shard_kinds, _checkpoint_kinds, _fitted_kinds, _result_kinds, _launching_kinds, _other_kinds)
    return {name: kind for make in makers for name, kind in make(shards, tmp_path).items()}


def _shard_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    copy = Path(shutil.copytree(shards, folder / "shards"))
    index = json.loads((copy / INDEX_NAME).read_text())

    def read_index(data: bytes) -> None:
        (copy / INDEX_NAME).write_bytes(data)
        opened = ShardSet.open([copy])
        assert opened.max_slot >= 0
        for split in ("train", "test"):
            for ref in [ref for refs in opened.classes(split).values() for ref in refs]:  # type: ignore[arg-type]
                opened.read(ref, 8)

    described = Path(shutil.copytree(shards, folder / "described"))
    path = described / index["shards"][0]["name"]
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    first = next(data for info, data in members if info.name.endswith(".json"))

    def read_described(data: bytes) -> None:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for info, content in members:
                new = data if content is first else content
                info.size = len(new)
                tar.addfile(info, BytesIO(new))
        changed = json.loads(json.dumps(index))
        changed["shards"][0].update(bytes=len(path.read_bytes()), sha256=sha256_of(path))
        (described / INDEX_NAME).write_text(json.dumps(changed))
        assert all("\n" not in problem for problem in verify_folder(described, progress=False))

    written = load_index(shards)
    looks = tuple(Look("", "") for _ in written.samples)
    facts = ({"depth": ImageFacts(dtype="uint8", channels=1, orientation=1, transparent=0.0)},) * len(looks)
    notes: tuple[dict[str, str], ...] = ({},) * len(looks)
    finished = FinishedShard(
        fingerprint="x",
        shard=written.shards[0],
        samples=written.samples,
        facts=facts,
        looks=looks,
        notes=notes,
    )

    def read_note(data: bytes) -> None:
        notes = folder / "notes"
        notes.mkdir(exist_ok=True)
        (notes / "a.tar.json").write_bytes(data)
        assert ShardNotes(notes, shards, 1).finished("a.tar", []) is None

    def read_lines(data: bytes) -> None:
        (folder / "table.jsonl").write_bytes(data)
        read_rows(folder / "table.jsonl", ["class"])

    return {
        "index of shards": Kind(index, read_index),
        "sample in a shard": Kind(json.loads(first), read_described),
        "note of a shard": Kind(json.loads(finished.model_dump_json()), read_note),
        "manifest": Kind({"class": "bolt", "split": "train", "rgb": "a.png", "mask": None}, read_lines),
    }


def _checkpoint_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    found = ShardSet.open([shards])
    classes = {name: [ref.entry for ref in refs] for name, refs in found.classes("train").items()}
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, 3), "c": torch.tensor(3)}
    checkpoint = folder / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    write_pieces(checkpoint / "model-00000.safetensors", [TensorSlice("a", (2, 3), 0, tensors["a"].flatten()[:2])])
    pieces = [TensorSlice("a", (2, 3), 2, tensors["a"].flatten()[2:])]
    pieces += [TensorSlice(name, tuple(tensors[name].shape), 0, tensors[name]) for name in ("b", "c")]
    write_pieces(checkpoint / "model-00001.safetensors", pieces)
    state = build_state(
        load_recipe("tiny"),
        step=3,
        finished=False,
        backbone_weights="none",
        data=["data/a", "s3://bucket/set"],
        layout=Layout(),
        trained_on=TrainedOn.of(found.datasets, classes),
    )
    digests = {file.name: file_digest(file) for file in checkpoint.glob("*.safetensors")}
    write_index_and_state(checkpoint, state, digests)
    shutil.copytree(checkpoint, folder / "verified")
    whole = (checkpoint / STATE_NAME).read_bytes()

    def read_index(data: bytes) -> None:
        (checkpoint / "index.json").write_bytes(data)
        reader = TensorReader(checkpoint)
        reader.check_fits(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(name), tensor), "it is read as it was, or not at all"

    def read_whole_state(data: bytes) -> None:
        (checkpoint / STATE_NAME).write_bytes(data)
        state = read_state(checkpoint)
        parse_recipe(state["recipe"], "recipe")
        read_trained_on(state, "state.json")
        for text in state.get("data", []):
            recorded_data_folder(text, "state.json")

    def read_digests(data: bytes) -> None:
        (folder / "verified" / DIGESTS_NAME).write_bytes(data)
        verify_checkpoint(folder / "verified")

    def read_latest(data: bytes) -> None:
        (checkpoint / STATE_NAME).write_bytes(whole)
        (checkpoint.parent / LATEST).write_bytes(data)
        assert CheckpointFolder(folder).newest() == checkpoint

    return {
        "index of tensors": Kind(json.loads((checkpoint / "index.json").read_text()), read_index),
        "state of a checkpoint": Kind(state, read_whole_state),
        "digests": Kind(json.loads((checkpoint / DIGESTS_NAME).read_text()), read_digests),
        "latest": Kind("step_00000003", read_latest),
    }


def _fitted_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    """What state.json says of a method that is fitted, beside its tensors."""
    recipe = load_recipe("search", ["model.backbone=resnet10t", "model.image_size=32"], settings_of(METHODS))
    model = build_method(recipe)
    assert isinstance(model, MemoryBank)
    description = {"banks": [["food/bagel", 0], ["food/bagel", 1]]}
    model.restore(description)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for number in range(2):
        shapes |= {f"banks.{number}": (3, model.features), f"deviations.{number}": (model.features,)}
    model.resize(shapes)
    state = build_state(
        recipe, step=0, finished=True, backbone_weights="none", data=[], layout=Layout(), fitted=description
    )
    checkpoint = write_model(CheckpointFolder(folder / "fitted"), model, state)
    before, after = json.dumps(state | {FITTED: "FITTED"}).split('"FITTED"')

    def read_fitted(data: bytes) -> None:
        (checkpoint / STATE_NAME).write_bytes(before.encode() + data + after.encode())
        loaded = load_checkpoint(checkpoint, verify=False).model
        assert isinstance(loaded, MemoryBank)
        assert len(loaded.names) == 2, "each of its tensors belongs to a class and slot"

    return {"what a method was fitted to": Kind(description, read_fitted)}


def _result_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    datasets = ShardSet.open([shards]).datasets
    thresholds = thresholds_by_sensors({"food/bagel": {("rgb",): [0.1, 0.2]}}, datasets, ["food/bagel"], 0.1)
    metrics: dict[str, float | None] = dict.fromkeys(METRIC_KEYS, 0.5)
    result = ClassResult("food", "industry", "bagel", 3, 4, metrics)
    report = Report({"blur": "none"}, (result,), (PublishedRow("food", "paper", metrics, "s", "n"),))
    usage = {"dataset": "food", "class": "bagel", "modalities": ["rgb"], "counts": [[[1, 2]]], "tokens": [3]}
    partial = {
        "fingerprint": "x",
        "class": class_entry(result),
        "image_scores": [0.1, 0.2],
        "labels": [False, True],
        "keys": ["a", "b"],
        "defects": ["good", "cut"],
        "curves": {"fpr": [0, 1], "tpr": [0, 1], "pro": [0, 1], "histogram": [[0, 1], [1], [1]], "threshold": 0.5},
        "usage": usage,
    }

    def read_thresholds(data: bytes) -> None:
        (folder / THRESHOLDS_NAME).write_bytes(data)
        found = load_thresholds(folder)
        assert found is not None
        assert all(np.isfinite(entry.value) for entry in found.classes.values())
        Catalogue(found.datasets, found.trained_classes).match(["rgb"], "bagel")

    def read_whole_report(data: bytes) -> None:
        (folder / "report.json").write_bytes(data)
        found = read_report(folder)
        assert screen_table(found)
        assert to_json(found)
        difference_table(compare(report, OtherReport("other", found))).to_text()

    def read_partial(data: bytes) -> None:
        partials = PartialResults(folder, "x")
        partials.folder.mkdir(exist_ok=True)
        (partials.folder / "food-bagel.json").write_bytes(data)
        for scored in partials.load().values():
            assert len(scored.keys) == len(scored.image_scores) == len(scored.labels)
            assert scored.usage is None or scored.usage.shares.ndim == 2

    def read_cell(data: bytes) -> None:
        (folder / "result.json").write_bytes(data)
        found, _ = read_result(folder / "result.json")
        assert found.report.mean_of_datasets()

    def read_cost_file(data: bytes) -> None:
        (folder / "cost.json").write_bytes(data)
        assert read_cost(folder / "cost.json").parameters >= 0

    measured = {"reference": "r", "time": "2026-01-01T00:00:00+00:00", "images": {"rgb": {"noise": 0.1}}}
    predicted = {"name": "a", "class": "food/bagel", "modalities": ["rgb"], "score": 0.5, "anomalous": False}

    def read_prediction(data: bytes) -> None:
        seen = parse_line(data, "a.jsonl line 1", "r")
        assert abs(seen.score) <= LARGEST
        assert all(abs(value) <= LARGEST for of_image in seen.images.values() for value in of_image.values())

    def read_looked_at(data: bytes) -> None:
        (folder / "predictions.jsonl").write_bytes(data)
        review = Review(folder)
        assert all(abs(line["score"]) < np.inf for line in review.listed())
        assert {review.picture(number) for number in range(len(review.samples))} == {None}, "there is no picture"

    save_scores({"food/bagel": {("rgb",): [0.1, 0.2]}}, thresholds, folder)
    behind = json.loads((folder / SCORES_NAME).read_text())

    def read_scores(data: bytes) -> None:
        (folder / SCORES_NAME).write_bytes(data)
        renewed(thresholds, load_scores(folder, thresholds), {})

    looked_at = predicted | {"threshold": 0.4, "files": {"rgb": "a.png"}, "notes": ["n"], "picture": "pictures/a.png"}
    cell = json.loads((FORMATS / "result.json").read_text())
    return {
        "line of predictions": Kind(predicted | {"monitor": measured}, read_prediction),
        "prediction looked at": Kind(looked_at, read_looked_at),
        "scores behind thresholds": Kind(behind, read_scores),
        "result of a cell": Kind(cell, read_cell),
        "cost of a cell": Kind(cell["cost"], read_cost_file),
        "thresholds": Kind(json.loads(thresholds.model_dump_json()), read_thresholds),
        "report": Kind(json.loads(to_json(report)), read_whole_report),
        "partial result": Kind(partial, read_partial),
    }


def _launching_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    note_failures(folder, "key", 0, 0, ValueError("a cause"))
    note = next(folder.glob("key.*"))

    def read_record(data: bytes) -> None:
        (folder / "key.run.json").write_bytes(data)
        assert RunRecord(folder, "key").starts() > 0

    def read_failure(data: bytes) -> None:
        note.write_bytes(data)
        first_failure(folder, "key")

    def read_config(data: bytes) -> None:
        (folder / "ds.json").write_bytes(data)
        engine_config(read_deepspeed_config(folder / "ds.json"), TrainingSettings(), 2)

    def read_holder(data: bytes) -> None:
        (folder / "training.lock").write_bytes(data)
        found = find_lock(folder / "training.lock")
        assert str(found).isprintable()
        assert found is not None
        assert not found.is_stale or found.is_near, "it was touched just now"

    config = {"unimmad": {"ep_size": 2}, "zero_optimization": {"stage": 1}, "torch_autocast": {"enabled": False}}
    return {
        "run record": Kind({"run": "runs/demo", "starts": 3}, read_record),
        "failure note": Kind(json.loads(note.read_text()), read_failure),
        "holder of a lock": Kind(json.loads(Holder.this_process().model_dump_json()), read_holder),
        "DeepSpeed's configuration": Kind(config, read_config),
    }


def _other_kinds(shards: Path, folder: Path) -> dict[str, Kind]:
    datasets = ShardSet.open([shards]).datasets
    metadata = ExportMetadata(
        unimmad_version="1",
        recipe="tiny",
        step=3,
        dataset="food",
        field="industry",
        modalities=datasets["food"].modalities,
        classes=("food/bagel",),
        image_size=64,
        evaluation=EvaluationSettings(),
        thresholds=thresholds_by_sensors({"food/bagel": {("rgb",): [0.1]}}, datasets, ["food/bagel"], 0.1),
    )

    def read_metadata(data: bytes) -> None:
        """Of an ONNX file: each entry is a JSON text of its own."""
        try:
            strings = {key: json.dumps(value) for key, value in json.loads(data).items()}
        except (AttributeError, RecursionError, ValueError):
            strings = {"format": data.decode(errors="replace")}
        assert ExportMetadata.from_strings(strings, "file.onnx").datasets

    def read_recipe(data: bytes) -> None:
        (folder / "recipe.yaml").write_bytes(data)
        load_recipe(str(folder / "recipe.yaml"))

    return {
        "metadata of an export": Kind(metadata.model_dump(mode="json"), read_metadata),
        "recipe": Kind(load_recipe("tiny").model_dump(mode="json"), read_recipe),
    }


KINDS = (
    *("index of shards", "sample in a shard", "note of a shard", "manifest"),
    *("index of tensors", "state of a checkpoint", "latest", "digests", "what a method was fitted to"),
    *("thresholds", "report", "partial result", "result of a cell", "cost of a cell"),
    *("run record", "failure note", "DeepSpeed's configuration", "holder of a lock"),
    *("metadata of an export", "recipe", "line of predictions", "prediction looked at", "scores behind thresholds"),
)


def _refusal(kind: Kind, data: bytes) -> ValueError | None:
    try:
        kind.read(data)
    except ValueError as error:
        return error
    return None


def check(kind: Kind, cases: int) -> None:
    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(kind.document))
    def each(data: bytes) -> None:
        refused = _refusal(kind, data)
        assert refused is None or type(refused) is ValueError or type(refused).__module__.startswith("unimmad.")
        assert "\n" not in str(refused), "one line"
        assert len(str(refused)) < 8000, "one that can be read"

    each()


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_read(kinds: dict[str, Kind], name: str) -> None:
    kinds[name].read(json.dumps(kinds[name].document).encode())


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(kinds: dict[str, Kind], name: str) -> None:
    check(kinds[name], SHORT)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_thousands_of_damaged_files_are_read_or_refused_in_one_line(kinds: dict[str, Kind], name: str) -> None:
    check(kinds[name], -(-LONG // len(KINDS)))
