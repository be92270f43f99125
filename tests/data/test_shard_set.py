import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from disk_sets import make_multimodal, make_mvtec, mask, rgb
from torch.utils.data import DataLoader

from unimmad.data import decode_limits as limits
from unimmad.data.depth_image import read_depth
from unimmad.data.layouts import find_set
from unimmad.data.location import parse_data_folder
from unimmad.data.prepare import prepare
from unimmad.data.reading.download import FetchError
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.sample import Sample
from unimmad.data.writing.shards import write_shards


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    roots = [make_multimodal(tmp_path / "food"), make_mvtec(tmp_path / "parts")]
    targets = [tmp_path / "shards" / root.name for root in roots]
    for root, target in zip(roots, targets, strict=True):
        write_shards([find_set(root).source], target, progress=False)
    return targets


def test_folders_join(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    assert list(shards.datasets) == ["food", "parts"]
    assert (shards.max_slot, shards.channels) == (1, 6)
    assert {name: len(refs) for name, refs in shards.classes("train").items()} == {
        "food/bagel": 2,
        "parts/bolt": 3,
    }
    assert {name: len(refs) for name, refs in shards.classes("test").items()} == {
        "food/bagel": 2,
        "parts/bolt": 3,
    }
    assert shards.classes("test")["parts/bolt"][0].class_name == "parts/bolt"
    assert shards.has("test")
    assert not shards.has("calibration")


def test_samples_come_back_prepared(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    cut, good = (shards.read(ref, 8) for ref in shards.classes("test")["food/bagel"])
    assert (cut.key, cut.dataset, cut.class_name) == ("bagel-test-cut-000", "food", "food/bagel")
    assert (cut.modalities, cut.slots, cut.anomalous) == (("rgb", "depth"), (0, 1), True)
    assert cut.images_MCHW.shape == (2, 3, 8, 8)
    torch.testing.assert_close(cut.images_MCHW[0], prepare(rgb(20), shards.datasets["food"].modalities[0], 8))
    assert cut.mask_HW is not None
    assert cut.mask_HW.dtype == torch.bool
    assert cut.mask_HW.any()
    assert good.mask_HW is not None
    assert not good.mask_HW.any()
    without = shards.read(shards.classes("test")["food/bagel"][0], 8, with_mask=False)
    assert without.mask_HW is None
    assert torch.equal(without.images_MCHW, cut.images_MCHW)
    own_size = shards.read(shards.classes("test")["parts/bolt"][0], 12)
    assert own_size.mask_HW is not None
    np.testing.assert_array_equal(own_size.mask_HW[:, 0].numpy(), mask()[:, 0] > 0)


def test_integer_depth_is_metres_with_invalid_background(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    depth = shards.datasets["food"].modalities[1]
    stored = np.array([[0, 40000], [50000, 0]], dtype=np.uint16)
    half = 5000 / 65535 * 0.5 * 100
    np.testing.assert_allclose(read_depth(stored, depth).centred(), [[0, -half], [half, 0]], rtol=1e-5)
    image = shards.read(shards.classes("train")["food/bagel"][0], 12).images_MCHW[1]
    assert (image[:, 2:5] < 0).all()
    assert (image[:, 7:] > 0).all()


def test_missing_modality_and_missing_mask(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path / "food")
    (root / "bagel/test/cut/rgb/000.png").unlink()
    (root / "bagel/test/cut/gt/000.png").unlink()
    (root / "bagel/test/cut/gt").rmdir()
    write_shards([find_set(root).source], tmp_path / "shards", allow_missing=True, progress=False)
    shards = ShardSet.open([tmp_path / "shards"])
    sample = shards.read(shards.classes("test")["food/bagel"][0], 8)
    assert (sample.modalities, sample.slots, sample.images_MCHW.shape[0]) == (("depth",), (1,), 1)
    assert sample.mask_HW is None


class Reader(torch.utils.data.Dataset[Sample]):
    def __init__(self, shards: ShardSet, refs: list[SampleRef]) -> None:
        self.shards, self.refs = shards, refs

    def __getitem__(self, position: int) -> Sample:
        return self.shards.read(self.refs[position], 8)

    def __len__(self) -> int:
        return len(self.refs)


def test_loader_workers_read_the_same(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    refs = [ref for group in shards.classes("test").values() for ref in group]
    here = [shards.read(ref, 8) for ref in refs]  # opens the shards before the workers fork
    there = DataLoader(Reader(shards, refs), batch_size=None, num_workers=2)
    for mine, theirs in zip(here, there, strict=True):
        assert mine.key == theirs.key
        assert torch.equal(mine.images_MCHW, theirs.images_MCHW)


def test_pickled_after_reading(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    ref = shards.classes("train")["food/bagel"][0]
    before = shards.read(ref, 8)
    copy, copied_ref = pickle.loads(pickle.dumps((shards, ref)))
    assert torch.equal(copy.read(copied_ref, 8).images_MCHW, before.images_MCHW)


def test_shard_cut_short(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    last = shards.classes("test")["food/bagel"][-1]
    path = folders[0] / "test-000000.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"food/test-000000\.tar is 2000 bytes, .*cut short"):
        ShardSet.open(folders)
    with pytest.raises(ValueError, match=r"test-000000\.tar: food/bagel-test-good-000\.0\.png: the shard ends"):
        shards.read(last, 8)
    path.unlink()
    with pytest.raises(ValueError, match=r"food/test-000000\.tar is missing"):
        ShardSet.open(folders)


def test_damaged_member_is_named(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    ref = shards.classes("test")["food/bagel"][0]
    path, member = folders[0] / "test-000000.tar", ref.entry.images["depth"]
    data = bytearray(path.read_bytes())
    data[member.offset : member.offset + member.length] = bytes(member.length)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"test-000000\.tar: food/bagel-test-cut-000\.1\.png: does not open"):
        shards.read(ref, 8)


def test_a_corrupt_sample_names_its_shard(folders: list[Path]) -> None:
    shards = ShardSet.open(folders)
    ref = shards.classes("test")["food/bagel"][0]
    path, member = folders[0] / "test-000000.tar", ref.entry.images["rgb"]
    with path.open("r+b") as file:
        file.seek(member.offset)
        file.write(bytes(member.length))
    with pytest.raises(CorruptSampleError) as caught:
        shards.read(ref, 8)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.shard, str(copied)) == (str(path), str(caught.value))


@pytest.mark.parametrize("name", ["a\nb", "a.\npng", "a\u2028b.png"])
def test_a_name_that_breaks_lines_is_shown_in_one(folders: list[Path], name: str) -> None:
    index = json.loads((folders[0] / "index.json").read_text())
    for sample in index["samples"]:
        for member in sample["images"].values():
            member.update(name=name, length=3)
    (folders[0] / "index.json").write_text(json.dumps(index))
    shards = ShardSet.open(folders[:1])
    for refs in shards.classes("test").values():
        with pytest.raises(CorruptSampleError) as error:
            shards.read(refs[0], 8)
        assert str(error.value).isprintable()


def test_a_member_that_the_index_makes_too_long_is_not_read(folders: list[Path], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    shards = ShardSet.open(folders)
    ref = shards.classes("train")["food/bagel"][0]
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", ref.entry.images["rgb"].length - 1)
    with pytest.raises(CorruptSampleError, match=r"good-000\.0\.png: .* bytes are more than an image may have"):
        shards.read(ref, 8)


@pytest.mark.parametrize("form", ["file://{folder}", "pipe:cat {folder}/{{}}"])
def test_folders_by_url(folders: list[Path], tmp_path: Path, form: str) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    remote = [parse_data_folder(form.format(folder=folder)) for folder in folders]
    shards, local = ShardSet.open(remote, cache), ShardSet.open(folders)
    assert not cache.folder.exists()
    assert shards.classes("test") == local.classes("test")
    for refs in local.classes("test").values():
        for ref in refs:
            assert torch.equal(shards.read(ref, 8).images_MCHW, local.read(ref, 8).images_MCHW)
    assert len(list(cache.folder.glob("*.tar"))) == 2


def test_a_url_that_holds_no_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json: cannot be opened \(No such file"):
        ShardSet.open([parse_data_folder(f"file://{tmp_path}")])
    (tmp_path / "index.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"index\.json: the file: Invalid JSON"):
        ShardSet.open([parse_data_folder(f"file://{tmp_path}")])


def test_a_shard_that_cannot_be_fetched_is_no_corrupt_sample(folders: list[Path], tmp_path: Path) -> None:
    shards = ShardSet.open([parse_data_folder(f"file://{folders[0]}")], ShardCache(tmp_path / "cache", 10**6))
    (folders[0] / "train-000000.tar").unlink()
    with pytest.raises(FetchError, match=r"train-000000\.tar: cannot be opened"):
        shards.read(shards.classes("train")["food/bagel"][0], 8)


def test_folders_that_cannot_join(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset food is in both"):
        ShardSet.open([folders[0], folders[0]])
    with pytest.raises(ValueError, match="no data folder"):
        ShardSet.open([])
    with pytest.raises(ValueError, match="does not exist"):
        ShardSet.open([tmp_path / "nowhere"])
