import numpy as np
import pytest

from unimmad.data.index import Modality
from unimmad.data.modality import (
    ModalityChoice,
    assign_slots,
    guess_kind,
    parse_modality,
    resolve_modality,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ir=gray", ModalityChoice("ir", "gray")),
        ("a=skip", ModalityChoice("a", "skip")),
        ("z=depth", ModalityChoice("z", "depth")),
        ("z=depth:2", ModalityChoice("z", "depth", 2.0)),
        ("z=depth:0.001:-1", ModalityChoice("z", "depth", 0.001, -1.0, True)),
        ("z=depth:1:none", ModalityChoice("z", "depth", 1.0, None, True)),
    ],
)
def test_parse(text: str, expected: ModalityChoice) -> None:
    assert parse_modality(text) == expected


@pytest.mark.parametrize(
    "text", ["rgb", "=rgb", "a=blue", "a=rgb:1", "a=depth:x", "a=depth:0", "a=depth:nan", "a=depth:1:2:3"]
)
def test_parse_refuses_and_quotes(text: str) -> None:
    with pytest.raises(ValueError, match="--modality " + text):
        parse_modality(text)


def test_guess_by_folder_name() -> None:
    assert [guess_kind(name) for name in ("RGB", "infrared", "T1ce", "depth_map", "xyz")] == [
        "rgb",
        "gray",
        "gray",
        "depth",
        "depth",
    ]
    assert guess_kind("channel7") is None


def test_depth_defaults_follow_the_number_type() -> None:
    integer = resolve_modality("depth", "depth", None, np.dtype(np.uint16))
    assert (integer.scale, integer.invalid) == (0.5, 0.0)
    real = resolve_modality("depth", "depth", None, np.dtype(np.float32))
    assert (real.scale, real.invalid) == (1.0, None)
    said = parse_modality("depth=depth:65.535:none")
    told = resolve_modality("depth", "depth", said, np.dtype(np.uint16))
    assert (told.scale, told.invalid) == (65.535, None)


def test_slots_follow_what_the_layout_declares_then_kind_and_name() -> None:
    kinds = {"depth": "depth", "t2": "gray", "rgb": "rgb", "t1": "gray"}
    found = [Modality.model_validate({"name": n, "kind": k, "slot": 0}) for n, k in kinds.items()]
    assert [m.name for m in assign_slots(found)] == ["rgb", "t1", "t2", "depth"]
    assert [m.name for m in assign_slots(found[::-1])] == ["rgb", "t1", "t2", "depth"]
    ordered = assign_slots(found, ["t2", "depth", "not there"])
    assert [(m.name, m.slot) for m in ordered] == [("t2", 0), ("depth", 1), ("rgb", 2), ("t1", 3)]
