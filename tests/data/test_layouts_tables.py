"""Datasets that a file lists: manifests, and the released index."""

import json
from pathlib import Path

import numpy as np
import pytest
from disk_sets import make_manifest, make_mmad_index, mask, save

from unimmad.data.decode import decode_image
from unimmad.data.layouts import find_set, find_sets
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_manifest(suffix: str, tmp_path: Path) -> None:
    found = find_set(make_manifest(tmp_path, suffix), field="textiles")
    source = found.source
    assert (source.name, source.entry.field, found.notices) == ("cloths", "textiles", ())
    assert [(m.name, m.kind, m.slot) for m in source.entry.modalities] == [("rgb", "rgb", 0), ("depth", "depth", 1)]
    assert [(s.split, s.defect, s.mask is not None) for s in source.samples] == [
        *[("train", "good", False)] * 3,
        ("calibration", "good", False),
        ("test", "good", False),
        ("test", "torn", True),
    ]
    assert source.samples[5].key == "cloth-test-torn-5"
    index = write_shards([source], tmp_path / "shards", progress=False)
    assert [shard.name for shard in index.shards] == [
        "train-000000.tar",
        "test-000000.tar",
        "calibration-000000.tar",
    ]


def test_manifest_of_one_image_a_sample(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / name, mask())
    path = tmp_path / "tiles.csv"
    path.write_text(f"class,split,image,name\ntile,train,{tmp_path / 'b.png'},first\n\ntile,train,a.png,\n")
    source = find_set(path).source
    assert [m.name for m in source.entry.modalities] == ["gray"]
    assert [sample.key for sample in source.samples] == ["tile-train-good-first", "tile-train-good-a"]


def test_quoted_cells_in_a_manifest(tmp_path: Path) -> None:
    for name in ("a, b.png", "a, c.png"):
        save(tmp_path / name, mask())
    (tmp_path / "m.csv").write_text(
        'class,split,image,defect\r\ntile,train,"a, b.png",\r\ntile,test,"a, c.png","torn"\r\n'
    )
    source = find_set(tmp_path / "m.csv").source
    assert [(sample.key, sample.mask) for sample in source.samples] == [
        ("tile-train-good-a%2C%20b", None),
        ("tile-test-torn-a%2C%20c", None),
    ]


GOOD_LINE = "tile,train,a.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column class and split"),
        ("class,image\ntile,a.png\n", "has no column split; its first line names the columns class, image"),
        ("class,split,image\n", "lists no sample"),
        ('class,split,image\ntile,train,"a.png\n', "line 2: is not CSV"),
        (f"class,split,image\n{GOOD_LINE},x\n", "line 2: 4 cells under 3 columns"),
        (f"class,split,image,image\n{GOOD_LINE},a.png\n", "names a column twice"),
        (f"class,split,picture\n{GOOD_LINE}\n", "column picture is unknown"),
        (f"class,split,Image\n{GOOD_LINE}\n", "column Image is unknown; image?"),
        (f"class,split,mask\n{GOOD_LINE}\n", "has no column image"),
        (f"class,split,image,image.ir\n{GOOD_LINE},a.png\n", "image stands beside image.ir"),
        ("class,split,image\ntile,training,a.png\n", "line 2: split 'training'; wanted train, test, calibration"),
        ("class,split,image\ntile,train,\n", r"has no column image or image\.NAME with a path in it"),
        (f"class,split,image\n{GOOD_LINE}\n,train,a.png\n", "line 3: class is empty"),
        (f"class,split,image\n{GOOD_LINE}\ntile,train,\n", "line 3: image is empty"),
        (f"class,split,image\n{GOOD_LINE}\ntile,test,b.png\n", r"line 3: .*b\.png does not exist"),
        (f"class,split,image,defect\n{GOOD_LINE},torn\n", "line 2: defect torn in the split train"),
        (f"class,split,image,defect,mask\n{GOOD_LINE},,\ntile,test,a.png,torn,m.png\n", r"m\.png does not exist"),
        ("class,split,image\ntile,test,a.png\n", "tile has no image in train/good"),
    ],
)
def test_bad_manifests(text: str, message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", mask())
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_set(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: is not JSON"),
        ('{"class": "tile", "split": 3}', "line 1: wanted one JSON object whose values are strings"),
        ('{"split": "train", "image": "a.png"}', "line 1: class is empty"),
    ],
)
def test_bad_json_lines(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_set(tmp_path / "m.jsonl")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "m.xlsx").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"m\.xlsx is a file of an unknown kind"):
        find_set(tmp_path / "m.xlsx")
    with pytest.raises(ValueError, match="is not a manifest"):
        find_set(tmp_path, layout="manifest")
    (tmp_path / "m.csv").write_bytes(b"class,split,image\n\xff,train,a.png\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        find_set(tmp_path / "m.csv")


def test_released_index(tmp_path: Path) -> None:
    found = find_sets(make_mmad_index(tmp_path))
    named = {item.source.name: item.source for item in found}
    modalities = {name: [(m.name, m.kind, m.slot) for m in source.entry.modalities] for name, source in named.items()}
    assert modalities == {
        "mvtec_3d": [("rgb", "rgb", 0), ("depth", "depth", 1)],
        "brats": [("gray", "gray", 0), ("gray2", "gray", 1), ("gray3", "gray", 2), ("gray4", "gray", 3)],
        "eyecandies": [("rgb", "rgb", 0), ("depth", "depth", 1)],
    }
    assert [source.entry.field for source in named.values()] == ["industry", "medicine", "industry"]
    assert [sample.key for sample in named["mvtec_3d"].samples] == [
        "bagel-train-good-0",
        "bagel-test-good-0",
        "bagel-test-hole-0",
    ]
    shapes = {}
    for name in ("mvtec_3d", "eyecandies"):
        file = named[name].samples[0].images["depth"]
        shapes[name] = decode_image(file.read(), file.suffix, file.name).shape
    assert shapes == {"mvtec_3d": (12, 16, 3), "eyecandies": (12, 16)}

    write_shards([item.source for item in found], tmp_path / "shards", progress=False)
    shards = ShardSet.open([tmp_path / "shards"])
    for refs in shards.classes("test").values():
        for sample in (shards.read(ref, 12) for ref in refs):
            assert sample.mask_HW is not None
            assert sample.mask_HW.any() == sample.anomalous
    depth = shards.read(shards.classes("train")["mvtec_3d/bagel"][0], 12).images_MCHW[1]
    np.testing.assert_array_equal(depth, np.zeros((3, 12, 12)))  # 0.5 m everywhere, centred


def _changed(path: Path, **changes: object) -> Path:
    content = json.loads(path.read_text())
    content["test"]["bagel_mvtec3d"][1].update(changes)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_type": ["rgb", "lidar"]}, r"test\.bagel_mvtec3d\.1\.img_type\.1: Input should be 'rgb'"),
        ({"img_type": ["rgb"]}, "test, bagel_mvtec3d, record 1: 2 img_path, but 1 img_type"),
        ({"anomaly": 2}, "anomaly: Input should be 0 or 1"),
        ({"mask_path": "../mask.png"}, r"record 1: path \.\./mask\.png leads out of"),
        ({"mask_path": "no.png"}, r"record 1: .*no\.png does not exist"),
    ],
)
def test_bad_index(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = _changed(make_mmad_index(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        find_sets(path)


def test_index_of_other_content(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text('{"train": {"bagel": []}, "test": {}}')
    with pytest.raises(ValueError, match="class bagel does not end in _DATASET"):
        find_sets(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is it the released index"):
        find_sets(path)


def test_several_sets_are_not_one(tmp_path: Path) -> None:
    path = make_mmad_index(tmp_path)
    with pytest.raises(ValueError, match="holds 3 datasets: mvtec_3d, brats, eyecandies"):
        find_set(path)
    with pytest.raises(ValueError, match="which --name cannot name"):
        find_sets(path, name="x")
