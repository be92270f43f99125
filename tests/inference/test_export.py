"""Exported files compute what PyTorch computes, say what they are, and serve prediction."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import spoil_weight
from PIL import Image

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import load_thresholds, save_thresholds
from unimmad.cli.export import main
from unimmad.cli.predict import main as predict
from unimmad.config import TileSettings
from unimmad.inference.deciding import NO_CLASS_TOLD
from unimmad.inference.detector import Detector
from unimmad.inference.export.files import METADATA_FILE
from unimmad.inference.export.metadata import ExportMetadata
from unimmad.inference.inputs import EncodedImage, InputSample
from unimmad.inference.prediction import Prediction
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings
from unimmad.serving.batching import Batching, BatchScorer, Question

onnx = pytest.importorskip("onnx", reason='exported files need the extra "export"')
onnxruntime = pytest.importorskip("onnxruntime", reason='exported files need the extra "export"')
pytest.importorskip("onnxscript", reason='exported files need the extra "export"')

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def sample(seed: int, size: int = 80) -> InputSample:
    rng = np.random.default_rng(seed)
    rgb = (rng.random((size, size, 3)) * 255).astype(np.uint8)
    depth = (rng.random((size, size)) * 60000).astype(np.uint16)
    return InputSample(f"sample {seed}", {"rgb": rgb, "depth": depth})


def export(calibrated: Path, target: Path, *words: str) -> Path:
    assert main(["--checkpoint", str(calibrated), "--target", str(target), *words]) == 0
    return target


@pytest.fixture(scope="module")
def onnx_file(calibrated, tmp_path_factory) -> Path:
    return export(calibrated, tmp_path_factory.mktemp("onnx") / "solids.onnx", "--format", "onnx")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_runtime_gives_pytorchs_scores_and_maps_at_any_batch_size(calibrated, onnx_file, batch, tmp_path):
    """The last one with a region of interest, which is outside of the graph."""
    roi = tmp_path / "roi.json" if batch == 5 else None
    (tmp_path / "roi.json").write_text(
        '{"size": [4, 4], "areas": [{"polygon": [[0, 0], [1, 0], [1, 3]], "weight": 0.5}]}'
    )
    samples = [sample(seed) for seed in range(batch)]
    ours = list(Detector.from_checkpoint(calibrated, roi=roi).predict_all(samples, batch_size=batch))
    theirs = list(Detector.from_onnx(onnx_file, roi=roi).predict_all(samples, batch_size=batch))
    assert [p.score for p in theirs] == pytest.approx([p.score for p in ours], rel=1e-4, abs=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other.map_HW, mine.map_HW, **CLOSE)
        assert mine.map_HW.std() > 1e-3
        assert (other.threshold, other.anomalous, other.notes) == (mine.threshold, mine.anomalous, mine.notes)
        assert (mine.threshold is None) == (roi is not None)
        assert (mine.map_HW == 0).any() == (roi is not None)


def test_a_file_whose_metadata_say_tiles_and_letterbox_gives_the_checkpoints_numbers(calibrated, onnx_file):
    """The loop over views is outside of the graph, the same for both."""
    ours, theirs = Detector.from_checkpoint(calibrated), Detector.from_onnx(onnx_file)
    images = {name: image[:50] for name, image in sample(3, size=150).images.items()}
    for tiles in (TileSettings(size=64, overlap=16, whole=True), TileSettings()):
        evaluation = theirs.engine.metadata.evaluation.model_copy(update={"tiles": tiles})
        theirs.engine.metadata = theirs.engine.metadata.model_copy(
            update={"aspect": "letterbox", "evaluation": evaluation}
        )
        ours.engine.geometry = theirs.engine.geometry
        mine, other = ours.predict(images), theirs.predict(images)
        assert other.score == pytest.approx(mine.score, rel=1e-4, abs=1e-4)
        assert mine.map_HW.shape == (50, 150)
        np.testing.assert_allclose(other.map_HW, mine.map_HW, **CLOSE)


@pytest.mark.parametrize("kind", ["checkpoint", "onnx"])
def test_threads_that_share_a_detector_get_what_one_gets(calibrated, onnx_file, kind):
    """4 threads, 8 predictions each, equal to the last bit."""
    detector = Detector.open(onnx_file if kind == "onnx" else calibrated, device="cpu")
    samples = [sample(seed) for seed in range(4)]
    expected = [detector.predict(one.images) for one in samples]

    def differing(thread: int) -> list[int]:
        turns = [(thread + turn) % len(samples) for turn in range(8)]
        found = [detector.predict(samples[place].images) for place in turns]
        return [place for place, one in zip(turns, found, strict=True) if not same(one, expected[place])]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(differing, range(4))) == [[]] * 4
    finally:
        sys.setswitchinterval(interval)


def test_an_exported_file_scores_what_comes_to_a_service(onnx_file):
    """Images as bytes, batches of what waits; what lacks a modality is refused, and the others answered."""
    detector = Detector.open(onnx_file, device="cpu")
    expected = [detector.predict(sample(seed).images) for seed in range(4)]
    asked = [Question(InputSample(f"{seed}", as_npy(sample(seed))), "cookie") for seed in range(4)]
    asked.insert(2, Question(InputSample("rgb alone", {"rgb": as_npy(sample(0))["rgb"]})))
    batches = []
    scorer = BatchScorer(detector, Batching(4, 1.0, 8), lambda size, seconds: batches.append(size))
    answers = [scorer.ask(question) for question in asked]
    scorer.close()
    with pytest.raises(ValueError, match="takes rgb, depth, all of them"):
        answers.pop(2).result()
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.result().map_HW, wanted.map_HW, **CLOSE)
        assert answer.result().class_name == "solids/cookie"
    assert sum(batches) == 4


def as_npy(one: InputSample) -> dict[str, EncodedImage]:
    found = {}
    for name, pixels in one.images.items():
        stream = io.BytesIO()
        np.save(stream, pixels)
        found[name] = EncodedImage(stream.getvalue(), f"{name}.npy")
    return found


def same(one: Prediction, other: Prediction) -> bool:
    return one.score == other.score and np.array_equal(one.map_HW, other.map_HW)


def test_the_order_of_the_modalities_given_does_not_matter(onnx_file):
    detector, images = Detector.from_onnx(onnx_file), sample(1).images
    turned = dict(reversed(list(images.items())))
    assert detector.predict(turned).score == detector.predict(images).score


def test_its_metadata_have_thresholds_classes_and_modalities(onnx_file, calibrated):
    strings = onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map
    assert json.loads(strings["classes"]) == ["solids/cookie", "solids/rope"]
    assert [(entry["name"], entry["slot"]) for entry in json.loads(strings["modalities"])] == [("rgb", 0), ("depth", 1)]
    metadata = ExportMetadata.from_strings(strings, "file")
    assert metadata.thresholds == load_thresholds(calibrated)
    assert (metadata.image_size, metadata.recipe, metadata.step, metadata.dataset) == (64, "tiny", 3, "solids")
    assert (metadata.evaluation.blur_sigma, metadata.evaluation.blur_sigma_at_256) == (None, 8)


def test_it_computes_in_fp32_and_says_so(onnx_file, calibrated, tmp_path, capsys):
    assert (
        json.loads(onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map["precision"]) == "fp32"
    )
    assert Detector.open(onnx_file, precision="fp32").engine.precision == "fp32"
    with pytest.raises(ValueError, match=r"solids.onnx computes in fp32: leave bf16 out"):
        Detector.open(onnx_file, precision="bf16")
    thresholds = load_thresholds(calibrated)
    assert thresholds is not None
    copy = shutil.copytree(calibrated, tmp_path / "of_bf16")
    save_thresholds(thresholds.model_copy(update={"precision": "bf16"}), copy)
    export(copy, tmp_path / "solids.pt2", "--format", "torch")
    assert "note: the file's samples are scored in fp32, by thresholds of scores in bf16" in capsys.readouterr().out


def test_it_runs_on_the_cpu_where_no_gpu_is_and_refuses_to_pretend(onnx_file):
    for device in (None, "cpu"):
        assert Detector.open(onnx_file, device=device).engine._session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ValueError, match="device cuda can't be used here"):
        Detector.open(onnx_file, device="cuda")


def test_only_the_file_is_left_behind(onnx_file):
    assert list(onnx_file.parent.iterdir()) == [onnx_file]


def test_a_known_class_has_its_threshold_and_an_unknown_one_that_of_all(onnx_file):
    detector = Detector.from_onnx(onnx_file)
    images = sample(2).images
    assert detector.predict(images, class_name="rope").threshold == 0.5
    assert detector.predict(images, class_name="spoon").threshold_of == "all classes"


def memory_bank() -> MemoryBank:
    """A bank for each class, so that scores depend on it."""
    settings = {"image_size": 64, "backbone": "resnet18", "coreset": "random", "patches": 20, "modality_slots": 2}
    method = MemoryBank(MemoryBankSettings.model_validate(settings))
    method.begin(0)
    for name in ("solids/cookie", "solids/rope"):
        method.collect(torch.rand(2, 3, 64, 64), [2], torch.tensor([0, 1]), [name], [name])
    method.finish(lambda tensors: tensors)
    return method


def test_a_file_of_a_method_that_needs_the_class_says_that_it_is_not_told_it(calibrated, tmp_path, capsys, monkeypatch):
    loaded = replace(load_checkpoint(calibrated), model=memory_bank())
    monkeypatch.setattr("unimmad.cli.export.load_checkpoint", lambda *_, **__: loaded)
    file = export(calibrated, tmp_path / "bank.onnx", "--format", "onnx")
    assert "its method's scores depend on the class" in capsys.readouterr().out
    (prediction,) = Detector.from_onnx(file).predict_all([sample(0)], class_name="cookie")
    assert (prediction.class_name, prediction.threshold, prediction.notes) == ("solids/cookie", None, (NO_CLASS_TOLD,))
    for name, image in sample(0).images.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    images = [word for name in ("rgb", "depth") for word in ("--modality", f"{name}={tmp_path / name}.png")]
    words = ["--checkpoint", str(file), "--class", "cookie", "--output-dir", str(tmp_path / "out"), *images]
    assert predict(words) == 0
    printed = capsys.readouterr().out
    assert "1 scored, without a decision: for one, use the checkpoint" in printed
    assert "calibrate" not in printed
    assert f"note: {NO_CLASS_TOLD}" in printed
    model = onnx.load(file)
    (entry,) = [entry for entry in model.metadata_props if entry.key == "misses_class"]
    model.metadata_props.remove(entry)
    onnx.save(model, tmp_path / "older.onnx")  # as versions wrote it that did not say so
    assert Detector.from_onnx(tmp_path / "older.onnx").predict(sample(0).images).score == prediction.score


def test_a_file_of_two_modalities_refuses_one(onnx_file):
    rgb = sample(0).images["rgb"]
    with pytest.raises(ValueError, match=r"image has the modalities rgb; the exported file takes rgb, depth"):
        Detector.from_onnx(onnx_file).predict({"rgb": rgb})


def test_a_torch_program_gives_the_same_numbers_at_any_batch_size(calibrated, tmp_path):
    file = export(calibrated, tmp_path / "rgb.pt2", "--format", "torch", "--modality", "rgb")
    extra = {METADATA_FILE: ""}
    program = torch.export.load(file, extra_files=extra).module()
    metadata = ExportMetadata.model_validate_json(extra[METADATA_FILE])
    assert [modality.name for modality in metadata.modalities] == ["rgb"]
    images = [{"rgb": sample(seed, size=64).images["rgb"]} for seed in range(3)]
    detector = Detector.from_checkpoint(calibrated)
    expected = [detector.predict(found) for found in images]
    pixels_NHWC = np.stack([found["rgb"] for found in images])
    images_BMCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)[:, None] / 255
    for count in (1, 3):
        maps_BHW, scores_B = program(images_BMCHW[:count])
        assert scores_B.tolist() == pytest.approx([p.score for p in expected[:count]], rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(maps_BHW.detach(), np.stack([p.map_HW for p in expected[:count]]), **CLOSE)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """Of a smaller program; in a process of its own, which PyTorch's writer would end."""
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from unimmad.inference.export import files\n"
        "files.trace = lambda *_: torch.export.export(torch.nn.Linear(99, 99), (torch.zeros(1, 99),))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    files.write_torch(None, SimpleNamespace(model_dump=lambda **_: {}), Path(sys.argv[1]))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "x.pt2")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write {tmp_path / 'x.pt2'}: File too large; choose another output folder\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx", "--target", "x.pt2"], "call it *.onnx"),
        (["--format", "torch", "--target", "x.pt2", "--dataset", "brains"], "brains is not known; known are solids"),
        (["--format", "torch", "--target", "x.pt2", "--modality", "t1"], "--modality t1: solids has rgb, depth"),
    ],
)
def test_bad_words_are_one_line_and_code_2(calibrated, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--checkpoint", str(calibrated), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_onnx_or_not_of_this_package_is_named(tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"other.onnx can't be run by ONNX Runtime"):
        Detector.from_onnx(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"gone.onnx does not exist; make it with unimmad export"):
        Detector.from_onnx(tmp_path / "gone.onnx")
    with pytest.raises(ValueError, match=r"other.onnx: its metadata do not say"):
        ExportMetadata.from_strings({"format": "1"}, "other.onnx")


@pytest.mark.parametrize(("entry", "value"), [("image_size", 65528), ("modalities", None)])
def test_metadata_that_the_graph_does_not_keep_are_refused(onnx_file, tmp_path, entry, value):
    """Images would be made as large as the metadata say before the graph refuses them."""
    model = onnx.load(onnx_file)
    found = next(pair for pair in model.metadata_props if pair.key == entry)
    found.value = json.dumps(json.loads(found.value)[:1] if value is None else value)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx: it takes .* which is not what its metadata say"):
        Detector.from_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_a_file_whose_scores_are_no_numbers_is_refused_by_sample(onnx_file, tmp_path, value):
    model = onnx.load(onnx_file)
    weights = max(model.graph.initializer, key=lambda found: np.prod(found.dims))
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed.reshape(-1)[:] = value
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(model, tmp_path / "other.onnx")
    detector = Detector.from_onnx(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"^image: .* NaN or infinite; check the model's weights"):
        detector.predict(sample(0).images)


def test_weights_that_are_not_finite_are_not_exported(calibrated, tmp_path, capsys):
    copy = shutil.copytree(calibrated, tmp_path / "broken")
    spoil_weight(copy, "levels.0.out.0.weight", np.nan)
    words = ["--checkpoint", str(copy), "--format", "torch", "--target", str(tmp_path / "x.pt2")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "levels.0.out.0.weight holds values that are NaN or infinite" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize(
    "classes", [["materials/cloth"], ["solids/cookie", "solids/cookie"], ["solids/cookie", "materials/cloth"]]
)
def test_classes_of_another_data_set_or_listed_twice_are_refused(onnx_file, classes):
    strings = onnxruntime.InferenceSession(onnx_file).get_modelmeta().custom_metadata_map
    with pytest.raises(ValueError, match=r"file: its metadata do not say what it needs .*class"):
        ExportMetadata.from_strings({**strings, "classes": json.dumps(classes)}, "file")


def node(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def mean(output: str, axes: list[int]) -> onnx.NodeProto:
    return node("ReduceMean", ["images"], output, axes=axes, keepdims=0)


MAPS, SCORES, ALL_BUT_BATCH = mean("maps", [1, 2]), mean("scores", [1, 2, 3, 4]), mean("s", [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([mean("maps", [1]), SCORES], r"gave float32 \(3, 3, 64, 64\) for float32 \(3, 64, 64\)"),
        ([mean("maps", [1, 2, 3]), SCORES], r"gave float32 \(3, 64\) for float32 \(3, 64, 64\)"),
        ([MAPS, mean("scores", [0, 1, 2, 3, 4])], r"gave float32 \(\) for float32 \(3,\)"),
        ([MAPS, mean("scores", [2, 3, 4])], r"gave float32 \(3, 2\) for float32 \(3,\)"),
        ([MAPS, ALL_BUT_BATCH, node("Cast", ["s"], "scores", to=onnx.TensorProto.INT64)], "gave int64"),
        ([MAPS, ALL_BUT_BATCH, node("Cast", ["s"], "scores", to=onnx.TensorProto.STRING)], "gave object"),
        ([MAPS, ALL_BUT_BATCH, node("SequenceConstruct", ["s"], "scores")], "gave list"),
        ([MAPS, ALL_BUT_BATCH, node("Reshape", ["s", "seven"], "scores")], "can't be run by ONNX Runtime: .*Reshape"),
    ],
)
def test_a_graph_that_gives_something_else_or_fails_is_refused_in_one_line(onnx_file, tmp_path, nodes, message):
    metadata = onnx.load(onnx_file).metadata_props
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 2, 3, 64, 64])
    seven = onnx.helper.make_tensor("seven", onnx.TensorProto.INT64, [1], [7])
    outputs = [onnx.ValueInfoProto(name=name) for name in ("maps", "scores")]
    graph = onnx.helper.make_graph(nodes, "g", [images], outputs, [seven])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.metadata_props.extend(metadata)
    onnx.save(model, tmp_path / "other.onnx")
    detector = Detector.from_onnx(tmp_path / "other.onnx", device="cpu")
    with pytest.raises(ValueError, match=rf"other\.onnx .*{message}") as raised:
        list(detector.predict_all([sample(seed) for seed in range(3)]))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("place", ["../weights.bin", "{folder}/weights.bin"])
def test_a_graph_reads_no_file_outside_its_folder(tmp_path, place):
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place.format(folder=tmp_path))
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "other.onnx"
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)])
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"other\.onnx can't be run by ONNX Runtime: .*[Ee]xternal data"):
        Detector.from_onnx(file)
