"""Feedback from a folder of predictions to thresholds and banks, and back; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from unimmad.checkpoint import feedback as versions
from unimmad.checkpoint.calibration_scores import SCORES_NAME, calibrated_digests, load_scores, save_scores
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.feedback import FOLDER, load_feedback
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.monitoring import MonitoringReference, Values, load_reference, save_reference
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, SensorThreshold, Thresholds, load_thresholds, save_thresholds
from unimmad.cli import calibrate as calibrate_command
from unimmad.cli import feedback as feedback_command
from unimmad.cli.add_class import main as add_class
from unimmad.cli.calibrate import main as calibrate
from unimmad.cli.feedback import main
from unimmad.cli.predict import main as predict
from unimmad.data.index import load_index
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.detector import Detector
from unimmad.inference.feedback import CheckedAnomaly, FeedbackTaker
from unimmad.inference.inputs import InputSample
from unimmad.inference.predicted import read_predictions
from unimmad.inference.reading import IN_BANK, pixels_digest
from unimmad.methods.banks import Banks

ROPE, BOLT = "solids/rope", "added/bolt"
BOTH = ("rgb", "depth")
NAMES = ["set/1", "set/2", "set/3", "set/4", "set/5", "set/6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint_folder, calibration_shards) -> Path:
    """A checkpoint that is calibrated for ropes and has bolts added, and six images predicted as each."""
    folder = tmp_path_factory.mktemp("feedback")
    checkpoint = folder / "checkpoint"
    shutil.copytree(checkpoint_folder, checkpoint)
    assert calibrate(["--checkpoint", str(checkpoint), "--data", str(calibration_shards), "--device", "cpu"]) == 0
    calibrated = load_thresholds(checkpoint)
    assert calibrated is not None
    assert set(load_scores(checkpoint, calibrated)) == set(calibrated.classes)
    assert len(calibrated_digests(checkpoint)) == sum(found.images for found in calibrated.classes.values())
    shards = ShardSet.open([calibration_shards])
    refs = [ref for name in ("solids/cookie", ROPE) for ref in shards.classes("test")[name]]
    for number, ref in enumerate(refs, start=1):
        for name, member in ref.entry.images.items():
            path = folder / "set" / name / f"{number}{Path(member.name).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shards.member_bytes(ref, member))
    few = folder / "few"
    for ref in shards.classes("train")["solids/cookie"]:
        for name, member in ref.entry.images.items():
            (few / name).mkdir(parents=True, exist_ok=True)
            (few / name / f"few{Path(member.name).suffix}").write_bytes(shards.member_bytes(ref, member))
    save_reference(_with_scores(load_reference(checkpoint)), checkpoint)
    assert add_class(["--checkpoint", str(checkpoint), "--class", "bolt", "--device", "cpu", str(few)]) == 0
    scores = {ROPE: {BOTH: [0.1, 0.2, 0.3]}, "materials/cloth": {("rgb",): [0.1]}}
    old = thresholds_by_sensors(scores, load_index(calibration_shards).datasets, tuple(scores), 0.25, "fp32")
    save_thresholds(old, checkpoint)
    save_scores(scores, old, checkpoint)
    for name in ("rope", "bolt"):
        assert predicted(checkpoint, folder, name) == 0
    return folder


def _with_scores(reference: MonitoringReference | None) -> MonitoringReference:
    """One calibration image is never below its own threshold."""
    assert reference is not None
    values = Values(values=[0.125], counts=[2])
    scores = [one.model_copy(update={"scores": values}) for one in reference.described.scores]
    return MonitoringReference(reference.described.model_copy(update={"scores": scores}), reference.usual)


def predicted(checkpoint: Path, folder: Path, name: str) -> int:
    words = ["--checkpoint", str(checkpoint), "--class", name, "--no-pictures", "--device", "cpu"]
    return predict([*words, "--output-dir", str(folder / name), str(folder / "set")])


@pytest.fixture
def place(made, tmp_path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made / "checkpoint", copy / "checkpoint")
    for name in ("rope", "bolt"):
        shutil.copytree(made / name, copy / name)
    return copy


def give(place: Path, *words: str, of: str = "rope") -> int:
    return main(
        ["--checkpoint", str(place / "checkpoint"), "--predictions", str(place / of), "--device", "cpu", *words]
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scores_of(place: Path, name: str) -> dict[str, float]:
    lines = (place / name / "predictions.jsonl").read_text().splitlines()
    return {line["name"]: line["score"] for line in map(json.loads, lines)}


def test_picked_images_raise_a_threshold_and_anomalies_only_check_it(place, monkeypatch, capsys):
    before = files(place / "checkpoint")
    scores = scores_of(place, "rope")
    highest = max(scores, key=lambda name: scores[name])
    low = next(name for name in NAMES if name != highest)
    with monkeypatch.context() as patched:
        patched.setattr(feedback_command, "changing", None)  # as where nothing can be written
        assert give(place, "--normal", highest, "--anomalous", low, "--dry-run") == 0
    assert files(place / "checkpoint") == before
    capsys.readouterr()
    assert give(place, "--normal", highest, "--anomalous", low) == 0
    said = capsys.readouterr().out
    assert f"{ROPE}: threshold 0.3 -> {scores[highest]:.4g}, false alarms at most 25.000%" in said
    assert "by 3 normal images as they came and 1 picked" in said
    assert f"{ROPE}: calibration alone: the method has no memory bank" in said
    assert f"the threshold misses 1 of 1 called anomalies, 0 before: {low}" in said
    thresholds = load_thresholds(place / "checkpoint")
    assert thresholds is not None
    assert thresholds.classes["materials/cloth"].value == 0.1
    reference = load_reference(place / "checkpoint")
    assert reference is not None
    assert [one.class_name for one in reference.described.scores if not one.scores.values] == [ROPE]
    assert give(place, "--normal", highest, "--anomalous", low) == 0
    assert "nothing new" in capsys.readouterr().out
    assert give(place, "--anomalous", highest) == 2
    assert "was called normal before (version 1)" in capsys.readouterr().err
    table = place / "all.csv"
    table.write_text("name,decision\n" + "".join(f"{name},normal\n" for name in NAMES))
    assert give(place, "--csv", str(table), "--complete") == 0
    said = capsys.readouterr().out
    assert "6 called normal, 0 anomalous" in said, "one of them is no longer called anomalous"
    whole = load_thresholds(place / "checkpoint")
    assert whole is not None
    ranked = sorted([0.1, 0.2, 0.3, *scores.values()])
    assert whole.classes[ROPE].value == pytest.approx(ranked[7]), "(9 + 1)(1 - 0.25), rounded up: the eighth"
    assert whole.classes[ROPE].images == 9
    assert whole.classes[ROPE].fpr_bound == 0.2
    assert load_scores(place / "checkpoint", load_feedback_of(place)[0].before)[ROPE] == {BOTH: [0.1, 0.2, 0.3]}
    assert give(place) == 0
    assert capsys.readouterr().out.count("version ") == 2
    assert give(place, "--undo") == give(place, "--undo") == 0
    assert files(place / "checkpoint") == before
    assert give(place, "--undo") == 2
    assert "no feedback that could be undone" in capsys.readouterr().err


def load_feedback_of(place: Path) -> tuple[versions.FeedbackVersion, ...]:
    folder = place / "checkpoint"
    return load_feedback(folder, None, load_thresholds(folder)).versions


def test_a_bank_grows_and_a_whole_run_gives_an_added_class_a_promise(place, capsys):
    before = scores_of(place, "bolt")
    assert give(place, "--normal", "set/3", "--dry-run", of="bolt") == 0
    said = capsys.readouterr().out
    assert "banks would grow by" in said
    assert "grew" not in said
    assert give(place, "--normal", "set/3", of="bolt") == 0
    said = capsys.readouterr().out
    assert f"{BOLT}: not calibrated: nothing is decided by these scores" in said
    assert "banks grew by" in said
    table = place / "all.csv"
    table.write_text("name,decision\n" + "".join(f"{name},normal\n" for name in NAMES[:5]) + "set/6,anomalous\n")
    assert give(place, "--csv", str(table), "--complete", of="bolt") == 0
    said = capsys.readouterr().out
    assert f"{BOLT}: new threshold" in said
    assert "false alarms at most 16.667% by 5 normal images as they came" in said
    recorded = {image.name: image.score for version in load_feedback_of(place) for image in version.images}
    assert recorded["set/3"] == pytest.approx(before["set/3"], rel=1e-4), "from before a bank held it"
    assert all(score <= before[name] * (1 + 1e-4) for name, score in recorded.items())
    detector = Detector.from_checkpoint(place / "checkpoint", device="cpu")
    files_of = json.loads((place / "bolt" / "predictions.jsonl").read_text().splitlines()[2])["files"]
    found = detector.predict(files_of, class_name="bolt")
    assert found.score < 0.8 * before["set/3"]
    assert IN_BANK in found.notes
    assert IN_BANK not in detector.predict(files_of, class_name="rope").notes
    assert (found.threshold_promised, found.threshold_of) == (True, BOLT)
    unnamed = detector.predict(files_of)
    assert (unnamed.threshold_promised, unnamed.threshold_of) == (False, "all classes")
    assert "banks grew since calibration: without its class no false-alarm rate is promised" in unnamed.notes
    digest = detector.model_digest
    assert give(place, "--undo") == 0
    assert Detector.from_checkpoint(place / "checkpoint", device="cpu").model_digest != digest
    assert add_class(["--checkpoint", str(place / "checkpoint"), "--remove", "bolt"]) == 0
    Detector.from_checkpoint(place / "checkpoint", device="cpu")  # rows of a bank that is gone are passed over


def test_thresholds_are_renewed_where_a_bank_has_no_room(place, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise ValueError("more than the setting max_bank_gb")

    monkeypatch.setattr(Banks, "check_room", full)
    assert give(place, "--normal", "set/3", of="bolt") == 0
    said = capsys.readouterr().out
    assert f"{BOLT}: calibration alone: of images that its bank has no room for: more than the setting" in said
    assert "banks grew by" not in said
    (version,) = load_feedback_of(place)
    assert (version.grown, [image.in_bank for image in version.images]) == ((), [False])


def test_an_interruption_leaves_what_was_or_what_the_next_call_finishes(place, monkeypatch, capsys):
    checkpoint, highest = place / "checkpoint", max(scores_of(place, "rope").items(), key=lambda item: item[1])[0]
    before = files(checkpoint)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(versions, "write_text_aside", killed)
        assert give(place, "--normal", highest) == 130
        assert load_feedback_of(place) == ()
    with monkeypatch.context() as patched:
        patched.setattr(versions, "save_thresholds", killed)
        assert give(place, "--normal", highest) == 130
    assert (checkpoint / THRESHOLDS_NAME).read_bytes() == before[THRESHOLDS_NAME]
    interrupted = files(checkpoint)
    assert give(place, "--normal", highest, "--dry-run") == 2
    assert "feedback was interrupted there: let unimmad feedback" in capsys.readouterr().err
    assert files(checkpoint) == interrupted, "a dry run writes nothing"
    assert give(place, "--normal", highest) == 0
    assert "nothing new" in capsys.readouterr().out
    done = files(checkpoint)
    assert done[THRESHOLDS_NAME] != before[THRESHOLDS_NAME]
    reference = load_reference(checkpoint)
    assert reference is not None
    assert [one.class_name for one in reference.described.scores if not one.scores.values] == [ROPE]
    for step in ("save_thresholds", "_copy", "_remove"):
        with monkeypatch.context() as patched:
            patched.setattr(versions, step, killed)
            assert give(place, "--undo") == 130
        assert give(place) == 0
        assert files(checkpoint) == before, step
        assert give(place, "--normal", highest) == 0
    assert give(place, "--undo") == 0
    assert files(checkpoint) == before
    with monkeypatch.context() as patched:
        patched.setattr(versions, "_copy", killed)  # of what monitoring compares with, before and after thresholds
        assert give(place, "--normal", highest) == 130
    assert give(place, "--normal", highest) == 0
    again = load_reference(checkpoint)
    assert again is not None
    assert again.digest == reference.digest, "the file has its entries in any order"


def test_called_anomalies_are_scored_by_the_banks_before_and_after_if_they_are_the_same(place, made):
    """From the second call on, too, and by a call in which no bank grows."""
    checkpoint, moved = place / "checkpoint", place / "moved"
    predictions = read_predictions(place / "bolt")
    gone = {}
    for name, file in predictions["set/2"].files.items():
        gone[name] = str(moved / name / Path(file).name)
        Path(gone[name]).parent.mkdir(parents=True)
        shutil.copy(file, gone[name])
    predictions["set/2"] = predictions["set/2"].model_copy(update={"files": gone})

    def take(**decisions: str) -> dict[str, CheckedAnomaly]:
        loaded = load_checkpoint(checkpoint)
        detector = Detector.of_loaded(loaded, device=torch.device("cpu"))
        assert detector.thresholds is not None
        taker = FeedbackTaker(checkpoint, detector, loaded.weights_digest)
        score = taker._score("set/2", predictions["set/1"].files, "bolt").score
        of_all = SensorThreshold(value=score * (1 - 1e-3), images=9, fpr_bound=0.25, modalities=BOTH)
        taker.thresholds = taker.thresholds.model_copy(update={"sensor_sets": (of_all,)})
        called = {name.replace("_", "/"): said for name, said in decisions.items()}
        change = taker.take(predictions, called)
        taken = change.version.model_copy(update={"before": detector.thresholds, "after": detector.thresholds})
        versions.save_version(taken, change.rows, change.digests, checkpoint)
        return {one.image.name: one for one in change.anomalies}

    first = take(set_1="anomalous", set_2="anomalous")
    assert (first["set/1"].missed_before, first["set/1"].missed_now) == (False, False)
    second = take(set_3="normal")
    assert (second["set/1"].missed_before, second["set/1"].missed_now) == (False, True), "the bank grew"
    for file in gone.values():
        shutil.copy(predictions["set/5"].files[Path(file).parent.name], file)
    third = take(set_4="anomalous")
    assert third["set/1"].missed_before == third["set/1"].missed_now is False, "by the banks as they are by now"
    assert (third["set/2"].scored, third["set/2"].missed_now) == (False, None), "it is another image by now"


def test_calibration_that_comes_to_the_same_does_not_bring_feedback_back(place):
    checkpoint, highest = place / "checkpoint", max(scores_of(place, "rope").items(), key=lambda item: item[1])[0]
    assert give(place, "--normal", highest) == 0
    assert len(load_feedback(checkpoint, None, load_thresholds(checkpoint)).counted) == 1
    (checkpoint / FOLDER / "0001 copy.json").write_text("somebody's own")
    (checkpoint / FOLDER / "2.json").write_text("somebody's own")
    assert len(load_feedback(checkpoint, None, load_thresholds(checkpoint)).counted) == 1
    versions.close(checkpoint)
    assert (checkpoint / FOLDER / "closed").read_text() == "1\n"
    assert load_feedback(checkpoint, None, load_thresholds(checkpoint)).counted == ()


def test_versions_are_in_the_order_of_their_numbers(tmp_path):
    assert [path.stem for path in versions.in_order([tmp_path / "10000.json", tmp_path / "9999.json"])] == [
        "9999",
        "10000",
    ]


def test_removing_a_class_leaves_the_feedback_of_others(place, capsys):
    checkpoint = place / "checkpoint"
    before = load_thresholds(checkpoint)
    highest = max(scores_of(place, "rope").items(), key=lambda item: item[1])[0]
    table = place / "all.csv"
    table.write_text("name,decision\n" + "".join(f"{name},normal\n" for name in NAMES))
    assert give(place, "--normal", highest) == 0
    assert give(place, "--csv", str(table), "--complete", of="bolt") == 0
    with_bolts = load_thresholds(checkpoint)
    assert with_bolts is not None
    assert before is not None
    assert BOLT in with_bolts.classes
    assert add_class(["--checkpoint", str(checkpoint), "--remove", "bolt"]) == 0
    low = min(scores_of(place, "rope").items(), key=lambda item: item[1])[0]
    capsys.readouterr()
    assert give(place, "--normal", low) == 0
    assert "by 4 normal images as they came and 1 picked" in capsys.readouterr().out
    assert [give(place, "--undo") for _ in range(3)] == [0, 0, 0]
    now = load_thresholds(checkpoint)
    assert now is not None
    assert now.classes == before.classes


def test_an_image_in_a_bank_is_none_of_calibration(place, made, calibration_shards, capsys):
    """By its pixels, whatever it is called."""
    checkpoint = place / "checkpoint"
    shards = ShardSet.open([calibration_shards])
    ref = shards.classes("calibration")["solids/cookie"][0]
    paths = {}
    for name, member in ref.entry.images.items():
        paths[name] = place / "held" / name / f"renamed{Path(member.name).suffix}"
        paths[name].parent.mkdir(parents=True)
        paths[name].write_bytes(shards.member_bytes(ref, member))
    assert add_class(["--checkpoint", str(checkpoint), "--class", "nut", "--device", "cpu", str(place / "held")]) == 0
    before = files(checkpoint)
    capsys.readouterr()
    words = ["--checkpoint", str(checkpoint), "--data", str(calibration_shards), "--device", "cpu"]
    assert calibrate(words) == 2
    said = capsys.readouterr().err
    assert "put these images into a bank" in said
    assert ref.entry.key in said
    assert files(checkpoint) == before


def test_banks_that_change_while_calibration_scores_are_noticed(place, calibration_shards, monkeypatch, capsys):
    checkpoint = place / "checkpoint"
    before = files(checkpoint)
    (added,) = [name for name in before if name.startswith("added_classes/")]

    def scored(*_: object, **__: object) -> Thresholds | None:
        (checkpoint / added).unlink()
        return load_thresholds(checkpoint)

    monkeypatch.setattr(calibrate_command, "calibrate", scored)
    assert calibrate(["--checkpoint", str(checkpoint), "--data", str(calibration_shards), "--device", "cpu"]) == 2
    assert "feedback or add-class changed its banks meanwhile: calibrate again" in capsys.readouterr().err
    assert files(checkpoint) == {name: content for name, content in before.items() if name != added}


def test_calibration_made_anew_begins_anew_and_damage_is_said(place, capsys):
    assert give(place, "--normal", "set/3", of="bolt") == 0
    checkpoint = place / "checkpoint"
    thresholds = load_thresholds(checkpoint)
    assert thresholds is not None
    scores = {ROPE: {BOTH: [0.7]}}
    new = thresholds_by_sensors(scores, thresholds.datasets, thresholds.trained_classes, 0.25, "fp32")
    save_thresholds(new, checkpoint)
    capsys.readouterr()
    assert give(place, "--normal", "set/1") == 2
    assert (
        "calibration_scores.json: it is of other thresholds than those beside it; calibrate" in capsys.readouterr().err
    )
    versions.close(checkpoint)
    save_scores(scores, new, checkpoint)
    assert give(place, "--undo") == 2
    assert "can't be undone: the thresholds were made again since" in capsys.readouterr().err
    assert give(place, "--normal", "set/3", of="bolt") == 0
    assert "nothing new: all of it was said before, or is in a bank" in capsys.readouterr().out
    assert give(place, "--normal", "set/1") == 0
    assert give(place) == 0
    assert "its scores no longer count" in capsys.readouterr().out.splitlines()[-2]
    rows = checkpoint / FOLDER / "0001.safetensors"
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"0001\.safetensors: it is damaged, or altered; remove the folder"):
        Detector.from_checkpoint(checkpoint, device="cpu")
    first = checkpoint / FOLDER / "0001.json"
    first.write_text(first.read_text().replace("set/3", "set/9"))
    assert give(place) == 2
    assert "0001.json is not what unimmad feedback wrote" in capsys.readouterr().err
    first.unlink()
    assert give(place) == 2
    assert "version 1 is missing before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--normal", "set/9"], "set/9 is none of the 6 predictions in"),
        (["--normal", "set/1", "--anomalous", "set/1"], "set/1 is called both normal and anomalous"),
        (["--normal", "set/1", "--complete"], "5 of 6 predictions were not called normal or anomalous: set/2"),
        (["--complete"], "nothing was called"),
        (["--undo", "--normal", "set/1"], "--undo takes nothing but"),
        (["--csv", "nowhere.csv"], "nowhere.csv can't be read"),
    ],
)
def test_what_is_wrong_is_one_line(words, said, place, capsys):
    before = files(place / "checkpoint")
    capsys.readouterr()
    assert give(place, *words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert files(place / "checkpoint") == before


def test_predictions_that_cannot_count_are_one_line(place, made):
    """Of two classes, by one detector."""
    checkpoint = place / "checkpoint"
    loaded = load_checkpoint(checkpoint)
    detector = Detector.of_loaded(loaded, device=torch.device("cpu"))
    weights = loaded.weights_digest
    taker = FeedbackTaker(checkpoint, detector, weights)
    one = read_predictions(place / "rope")["set/1"]
    few = {name: str(next((made / "few" / name).iterdir())) for name in BOTH}

    def refused(words: str, **changes: object) -> None:
        changed = {"set/1": one.model_copy(update=changes), "copy": one.model_copy(update={"name": "copy"})}
        decisions = {"set/1": "normal"} | ({"copy": "anomalous"} if not changes else {})
        with pytest.raises(ValueError, match=re.escape(words)) as error:
            taker.take(changed, decisions)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)

    refused("it is of another checkpoint, or made with other --tiles or --roi", score=one.score * 1.1)
    refused("can't be read (No such file or directory); feedback reads the images again", files={"rgb": "gone.png"})
    refused("was predicted without a class that the model knows", class_name=None)
    refused("names no files", files={})
    refused("have the same images, and are called both normal and anomalous")
    score = taker._score("set/1", few, BOLT).score
    held = {"set/1": one.model_copy(update={"files": few, "class_name": BOLT, "score": score})}
    with pytest.raises(ValueError, match=r"1 of 1 images are in a bank or in the calibration already.*: set/1; leave"):
        taker.take(held, {"set/1": "normal"}, complete=True)
    change = taker.take(held, {"set/1": "normal"})
    assert (change.held, change.version.images, change.rows) == (1, (), {})
    assert len(taker.take(held, {"set/1": "anomalous"}).anomalies) == 1, "which may be checked"
    assert detector.thresholds is not None
    digests = {ROPE: {BOTH: [pixels_digest(InputSample("set/1", dict(one.files)))]}}
    save_scores({ROPE: {BOTH: [0.1, 0.2, 0.3]}}, detector.thresholds, checkpoint, digests)
    again = FeedbackTaker(checkpoint, detector, weights)
    assert again.take({"set/1": one}, {"set/1": "normal"}).held == 1, "its score is calibration's already"
    (checkpoint / SCORES_NAME).unlink()
    with pytest.raises(ValueError, match="an earlier version calibrated, and kept no scores; calibrate again"):
        FeedbackTaker(checkpoint, detector, weights)
    detector.thresholds = None
    with pytest.raises(ValueError, match="is not calibrated: run unimmad calibrate first"):
        FeedbackTaker(checkpoint, detector, weights)
