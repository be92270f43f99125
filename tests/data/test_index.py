"""An index that is damaged, altered or at odds with itself is refused by name; what was written is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_sets import make_multimodal, make_mvtec

from unimmad.data.index import INDEX_NAME, load_index
from unimmad.data.layouts import find_set
from unimmad.data.writing.shards import write_shards


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The index of two datasets, food (rgb, depth) and parts (rgb)."""
    root = tmp_path_factory.mktemp("sets")
    sets = [find_set(make(root / name)).source for name, make in (("food", make_multimodal), ("parts", make_mvtec))]
    write_shards(sets, root / "shards", progress=False)
    return json.loads((root / "shards" / INDEX_NAME).read_text())


def sample(index: dict[str, Any]) -> dict[str, Any]:
    return index["samples"][0]


def rgb(index: dict[str, Any]) -> dict[str, Any]:
    return index["samples"][0]["images"]["rgb"]


def modalities(index: dict[str, Any]) -> list[dict[str, Any]]:
    return index["datasets"]["food"]["modalities"]


def merged(index: dict[str, Any]) -> None:
    """Class ``bagel/x`` of a dataset ``food`` and class ``x`` of a dataset ``food/bagel`` would be one."""
    index["datasets"]["food/bagel"] = index["datasets"]["food"]
    for entry in index["samples"][:2]:
        entry.update(dataset="food/bagel", class_name="x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: modalities(index).append(modalities(index)[0]), "two modalities share a name"),
        (lambda index: modalities(index)[1].update(slot=0), "two modalities share a slot"),
        (lambda index: sample(index)["images"].update(depth=rgb(index)), "has one member twice"),
        (lambda index: sample(index).update(mask=rgb(index)), "has one member twice"),
        (lambda index: sample(index)["images"].update(ir=rgb(index)), "has a modality ir that dataset food does not"),
        (lambda index: index["samples"].append(sample(index)), "the key bagel-train-good-000 .* is listed twice"),
        (lambda index: index["shards"].append(index["shards"][0]), "shard train-000000.tar is listed twice"),
        (merged, "String should match pattern"),
        (lambda index: sample(index).update(class_name="a/b"), r"samples\.0\.class_name: String should match"),
        (lambda index: sample(index).update(class_name=".."), r"samples\.0\.class_name: String should match"),
        (lambda index: sample(index).update(key="../../x"), r"samples\.0\.key: String should match"),
        (lambda index: modalities(index)[0].update(name="a/b"), r"modalities\.0\.name: String should match"),
        (lambda index: sample(index).update(anomalous=True), "has the defect good and anomalous True"),
        (lambda index: sample(index).update(anomalous=True, defect="cut"), "of train has the defect cut"),
        (lambda index: sample(index).update(images={}), r"samples\.0\.images: .* at least 1 item"),
        (lambda index: rgb(index).update(offset=2**63), r"offset: Input should be less than"),
        (lambda index: rgb(index).update(length=2**40), r"000\.0\.png lies beyond the end of its shard"),
        (lambda index: rgb(index).update(offset=-1), r"offset: Input should be greater"),
        (lambda index: index["datasets"]["food"].update(modalities=[]), "at least 1 item"),
        (lambda index: index.update(datasets={}), "at least 1 item"),
        (lambda index: modalities(index)[1].update(scale=float("nan")), "scale: Input should be a finite number"),
        (lambda index: modalities(index)[1].update(scale=0), "scale: Input should be greater than"),
        (lambda index: index["datasets"].update({"a\nb": 5}), r"datasets\.a\\nb\."),
    ],
)
def test_what_is_at_odds_with_itself_is_refused_in_one_line(
    written: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    index = json.loads(json.dumps(written))
    change(index)
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=says) as refused:
        load_index(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / INDEX_NAME}: ")
    assert "\n" not in str(refused.value)


def test_what_was_written_is_read(written: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps(written))
    assert len(load_index(tmp_path).samples) == len(written["samples"])
