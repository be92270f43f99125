"""What a monitor tells of a change, and what it doesn't take for one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from monitoring.conftest import CLASSES, USUAL

from unimmad.checkpoint.monitoring import SMALL, Usual, load_reference, save_reference
from unimmad.monitoring.monitor import NO_CLASS, SCORE_DRIFT, DriftMonitor
from unimmad.monitoring.output import as_json, screen_lines
from unimmad.monitoring.streams import SCORE, SHARE


@pytest.mark.parametrize(
    ("moved", "cause"),
    [
        ({"brightness": -6}, "exposure: darker"),
        ({"sharpness": -6, "noise": -6}, "blur"),
        ({"noise": 6, "sharpness": 6}, "noise: more"),
        ({"moved_right": 6}, "shift: right"),
        ({"moved_right": -6}, "shift: left"),
        ({"sharpness": 6}, "sharper"),
    ],
)
def test_class_modality_cause_and_place_of_a_change_are_named(reference, predicted, moved, cause):
    monitor = DriftMonitor(reference)
    for number in range(90):
        monitor.add(predicted(CLASSES[0], moved if number >= 60 else None))
        monitor.add(predicted(CLASSES[1]))
    (verdict,) = monitor.verdicts()
    assert (verdict.class_name, verdict.modalities, verdict.drift, verdict.causes) == (
        CLASSES[0],
        ("rgb",),
        "image",
        (cause,),
    )
    assert {alarm.stream.statistic for alarm in verdict.alarms} == set(moved)
    assert 53 <= verdict.since.number <= 64  # by chance some images before look like it
    assert verdict.since.name == f"part{verdict.since.number}"
    assert verdict.alarms[0].noticed.number <= 76
    assert monitor.seen == {CLASSES[0]: 90, CLASSES[1]: 90}
    line = screen_lines(monitor)[0]
    assert line == f"DRIFT solids/cookie rgb: {cause}"


def test_scores_alone_are_told_apart_from_images(reference, predicted):
    monitor = DriftMonitor(reference)
    for number in range(100):
        monitor.add(predicted(score=1.6 if number >= 50 else 1.0))
    (verdict,) = monitor.verdicts()
    assert (verdict.drift, verdict.causes) == ("score", (SCORE_DRIFT,))
    assert verdict.alarms[0].stream.statistic == SCORE
    assert as_json(monitor, ["a"])["verdicts"][0]["alarms"][0]["direction"] == "higher"


def test_defects_are_no_drift_until_they_are_more_than_was_expected(reference, predicted):
    """One in 20 has a defect: its score, far beyond the threshold, is not compared with normal ones."""
    monitor = DriftMonitor(reference)
    for number in range(600):
        defect = number % 20 == 0
        monitor.add(predicted(score=5.0 if defect else 1.0, anomalous=defect))
    assert monitor.verdicts() == []
    for number in range(60):
        monitor.add(predicted(score=5.0 if number % 2 else 1.0, anomalous=bool(number % 2)))
    (verdict,) = monitor.verdicts()
    assert [alarm.stream.statistic for alarm in verdict.alarms] == [SHARE]
    assert verdict.alarms[0].since.number > 590


def test_what_is_not_calibrated_is_counted(reference, predicted):
    monitor = DriftMonitor(reference)
    monitor.add(predicted("solids/nut"))
    monitor.add(predicted(None))
    monitor.add(predicted(sensors=("rgb",)))
    monitor.add(predicted(anomalous=None))
    assert monitor.unknown == {"solids/nut": 1, NO_CLASS: 1, f"{CLASSES[0]} with rgb": 1}
    counts = {str(name): stream.evidence.seen for name, stream in monitor.streams.items() if stream.evidence.seen}
    assert counts == {
        **{f"{CLASSES[0]} rgb {name}": 2 for name in USUAL},
        **{f"{CLASSES[0]} depth {name}": 1 for name in USUAL},
    }
    assert "note: 1 image not watched: solids/nut was not calibrated" in screen_lines(monitor)


def test_each_statistic_has_its_part_of_the_false_alarms(reference):
    monitor = DriftMonitor(reference, 0.02)
    assert len(monitor.streams) == 2 * (2 * len(USUAL) + 2)
    assert {stream.limit for stream in monitor.streams.values()} == {20 / 0.02}
    for wrong in (0, 1, -0.1):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            DriftMonitor(reference, wrong)


def test_what_calibration_kept_comes_back_or_is_refused(reference, tmp_path):
    assert load_reference(tmp_path) is None
    path = save_reference(reference, tmp_path)
    found = load_reference(tmp_path)
    assert found.described == reference.described
    assert found.digest == reference.digest
    content = path.read_bytes()
    for damaged in (
        content[:40],
        content.replace(b"0.5", b"0.6", 1),
        content.replace(b'format\\": 1', b'format\\": 2'),
    ):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"monitoring\.safetensors.*; calibrate again, or remove it") as told:
            load_reference(tmp_path)
        assert "\n" not in str(told.value)
    usual = Usual(np.zeros((SMALL, SMALL), np.float32), np.zeros(4, np.float32), np.ones(4, np.float32))
    whole = dataclasses.replace(reference, usual={(CLASSES[0], "rgb"): usual})
    save_reference(whole, tmp_path)
    assert load_reference(tmp_path).digest == whole.digest != reference.digest
    for wrong in (
        {"picture_SS": usual.picture_SS[1:]},
        {"deviation_F": np.zeros(4, np.float32)},
        {"mean_F": np.full(4, np.nan, np.float32)},
        {"mean_F": np.zeros(3, np.float32)},
    ):
        odd = dataclasses.replace(usual, **wrong)
        save_reference(dataclasses.replace(reference, usual={(CLASSES[0], "rgb"): odd}), tmp_path)
        with pytest.raises(ValueError, match="not what calibration wrote"):
            load_reference(tmp_path)
