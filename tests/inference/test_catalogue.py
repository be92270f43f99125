from __future__ import annotations

import pytest

from unimmad.data.index import DatasetEntry, Modality, ModalityKind
from unimmad.inference.catalogue import Catalogue


def entry(*modalities: tuple[str, ModalityKind], scale: float = 0.5) -> DatasetEntry:
    made = [
        Modality(name=name, slot=slot, kind=kind, scale=scale if kind == "depth" else 1.0)
        for slot, (name, kind) in enumerate(modalities)
    ]
    return DatasetEntry(field="industry", modalities=tuple(made))


CATALOGUE = Catalogue(
    {
        "cloths": entry(("rgb", "rgb")),
        "solids": entry(("rgb", "rgb"), ("depth", "depth")),
        "devices": entry(("rgb", "rgb"), ("infrared", "gray"), ("depth", "depth"), scale=0.2),
        "scans": entry(("t1", "gray"), ("t2", "gray")),
    },
    ("cloths/plain", "solids/cookie", "solids/cap", "devices/cap", "scans/brain"),
)


def names(match) -> list[str]:
    return [modality.name for modality in match.modalities]


def test_a_class_is_found_by_its_short_and_its_full_name():
    for given in ("cookie", "solids/cookie"):
        match = CATALOGUE.match(["depth", "rgb"], given)
        assert match.class_name == "solids/cookie"
        assert names(match) == ["rgb", "depth"]
        assert match.missing == ()


def test_a_class_of_several_data_sets_must_be_given_in_full():
    with pytest.raises(ValueError, match=r"solids/cap, devices/cap"):
        CATALOGUE.match(["rgb"], "cap")
    assert CATALOGUE.match(["rgb"], "devices/cap").missing == ("infrared", "depth")


def test_an_unknown_class_is_allowed_and_its_data_set_tells_the_modalities():
    assert CATALOGUE.match(["rgb"], "spoon").class_name is None
    match = CATALOGUE.match(["rgb", "depth"], "devices/spoon")
    assert match.class_name is None
    assert match.modalities[1].scale == 0.2
    assert match.missing == ("infrared",)


def test_modalities_without_a_class_go_by_the_data_set_that_has_exactly_them():
    match = CATALOGUE.match(["depth", "rgb"])
    assert [modality.slot for modality in match.modalities] == [0, 1]
    assert match.modalities[1].scale == 0.5
    assert match.missing == ()


def test_some_modalities_of_a_data_set_will_do_and_the_others_are_told():
    match = CATALOGUE.match(["t2"])
    assert [modality.slot for modality in match.modalities] == [1]
    assert match.missing == ("t1",)


def test_a_modality_that_means_different_things_must_be_told_by_the_class():
    with pytest.raises(ValueError, match=r"solids, devices differ .*--class solids/NAME"):
        CATALOGUE.match(["depth"])


def test_an_image_without_a_name_is_that_of_the_data_set_of_one_modality():
    assert names(CATALOGUE.match(None)) == ["rgb"]
    assert names(CATALOGUE.match(None, "plain")) == ["rgb"]


def test_an_image_without_a_name_is_not_enough_for_several_modalities():
    with pytest.raises(ValueError, match=r"--modality NAME=FILE .*solids: rgb, depth"):
        CATALOGUE.match(None, "cookie")


@pytest.mark.parametrize(
    ("given", "class_name", "message"),
    [
        (["x-ray"], None, r"modality x-ray is not known; known are rgb, depth, infrared, t1, t2"),
        (["infrared"], "cookie", r"modality infrared is not known; known are rgb, depth$"),
        (["rgb", "t1"], None, r"no dataset has all of the modalities rgb, t1"),
        ([], None, r"modality \(none\) is not known"),
    ],
)
def test_modalities_that_cannot_be_are_refused_with_those_that_can(given, class_name, message):
    with pytest.raises(ValueError, match=message):
        CATALOGUE.match(given, class_name)
