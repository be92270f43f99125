"""Which samples get a picture, and in what order."""

from __future__ import annotations

import numpy as np
import pytest

from unimmad.report.selection import Reason, failures_first

NORMAL = [0.1, 0.9, 0.3, 0.2, 0.5]
ANOMALOUS = [0.8, 0.25, 1.5, 0.6, 0.95, 0.7]
SCORES = np.array(NORMAL + ANOMALOUS)
LABELS = np.array([False] * 5 + [True] * 6)
DEFECTS = ["good"] * 5 + ["hole", "hole", "hole", "crack", "crack", "hole"]


def chosen(count, scores=SCORES, labels=LABELS, defects=DEFECTS):
    return failures_first(scores, labels, defects, count)


def test_failures_come_first_then_ordinary_samples():
    scores = [float(SCORES[choice.index]) for choice in chosen(8)]
    # Ordinary: the anomalies next to the median (0.75), holes and cracks in turn, and the normals' median.
    assert scores[:4] == [0.9, 0.5, 0.25, 0.6]
    assert set(scores[4:7]) == {0.7, 0.8, 0.95}
    assert scores[7] == 0.3
    assert [choice.reason for choice in chosen(8)] == [
        *[Reason.FALSE_ALARM] * 2,
        *[Reason.MISSED] * 2,
        *[Reason.ORDINARY_ANOMALY] * 3,
        Reason.ORDINARY_NORMAL,
    ]


def test_ordinary_anomalies_take_the_kinds_of_defect_in_turn():
    ordinary = [choice.index for choice in chosen(8) if choice.reason is Reason.ORDINARY_ANOMALY]
    assert [DEFECTS[index] for index in ordinary] == ["hole", "crack", "hole"]


def test_four_pictures_are_one_of_each():
    assert [choice.reason for choice in chosen(4)] == list(Reason)


@pytest.mark.parametrize("count", range(14))
def test_never_more_than_asked_never_twice_and_all_when_there_is_room(count):
    indices = [choice.index for choice in chosen(count)]
    assert len(indices) == len(set(indices)) == min(count, len(SCORES))


def test_a_single_picture_is_an_ordinary_anomaly():
    (only,) = chosen(1)
    assert only.reason is Reason.ORDINARY_ANOMALY


def test_notes_count_the_images_on_the_wrong_side():
    by_reason = {choice.reason: choice.note for choice in chosen(4)}
    assert by_reason[Reason.FALSE_ALARM] == "highest-scoring normal, >= 4 of 6 anomalies"
    assert by_reason[Reason.MISSED] == "lowest-scoring anomaly, <= 3 of 5 normals"
    assert by_reason[Reason.ORDINARY_ANOMALY] == "ordinary anomaly"


def test_a_class_of_one_label_fills_its_places_with_it():
    scores = np.array([3.0, np.inf, 1.0])
    normals = chosen(3, scores, np.zeros(3, bool), ["good"] * 3)
    assert [choice.index for choice in normals] == [1, 0, 2]
    assert [choice.note for choice in normals] == ["highest-scoring normal", "ordinary normal", "ordinary normal"]
    anomalies = chosen(3, scores, np.ones(3, bool), ["hole"] * 3)
    assert sorted(choice.index for choice in anomalies) == [0, 1, 2]
    assert anomalies[0].index == 2


def test_equal_scores_go_by_position():
    labels = np.array([False, False, True, True])
    choices = chosen(4, np.ones(4), labels, ["good", "good", "hole", "hole"])
    assert [choice.index for choice in choices] == [0, 2, 3, 1]


def test_no_images_give_no_pictures():
    assert chosen(4, np.empty(0), np.empty(0, bool), []) == ()
