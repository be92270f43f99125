"""What stored values mean: found or given, in the index, and the same in shards and in prediction."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_sets import gray, mask, rgb, save
from PIL import Image

from unimmad.data import depth_image
from unimmad.data.depth_image import read_depth
from unimmad.data.index import DatasetEntry, Index, Modality, ValueRange, load_index
from unimmad.data.layouts import find_set
from unimmad.data.modality import (
    ModalityChoice,
    bare_number_note,
    parse_modality,
    read_otherwise,
    reading_of,
    resolve_modality,
)
from unimmad.data.prepare import IMAGENET_MEAN, IMAGENET_STD, resize
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.value_range import found_range
from unimmad.data.writing import shards as writing
from unimmad.data.writing.packing import Broken, PackedSample, Work
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.inputs import InputSample
from unimmad.inference.reading import PreparedSample, prepare_sample

SIDE = 8
Image_ = Callable[[int], np.ndarray]
"""By a seed."""


def pictures(root: Path, image: Image_, count: int = 4, suffix: str = ".png") -> Path:
    for number in range(count):
        save(root / "part" / "train" / "good" / f"{number}{suffix}", image(number))
        save(root / "part" / "test" / "good" / f"{number}{suffix}", image(50 + number))
    return root


def with_depth(root: Path, image: Image_, suffix: str = ".npy") -> Path:
    for number in range(3):
        for part, seed in (("train/good", number), ("test/good", 50 + number)):
            save(root / "part" / part / "rgb" / f"{number}.png", rgb(seed))
            save(root / "part" / part / "depth" / f"{number}{suffix}", image(seed))
    return root


def written(root: Path, target: Path, choices: Sequence[str] = ()) -> tuple[ShardSet, dict[str, Modality]]:
    """The shards of a folder, and what the index says of its modalities."""
    found = find_set(root, modalities=[parse_modality(choice) for choice in choices])
    index = write_shards([found.source], target, progress=False, overwrite=True)
    assert load_index(target).datasets == index.datasets
    return ShardSet.open([target]), {item.name: item for item in index.datasets[found.source.name].modalities}


def input_of(shards: ShardSet, name: str, split: str = "train", place: int = 0) -> np.ndarray:
    """Of one sample, as the model gets it; RGB and gray in 0-1."""
    (refs,) = shards.classes(split).values()  # type: ignore[arg-type]
    sample = shards.read(refs[place], SIDE)
    image_HW = sample.images_MCHW[sample.modalities.index(name), 0].numpy()
    return image_HW if name == "depth" else image_HW * IMAGENET_STD[0] + IMAGENET_MEAN[0]


def predicted(modality: Modality, image: np.ndarray | Path) -> PreparedSample:
    catalogue = Catalogue({"set": DatasetEntry(field="x", modalities=(modality,))}, ())
    return prepare_sample(InputSample("sample", {modality.name: image}), catalogue, None, SIDE, False)


def eight_bits_wide(seed: int) -> np.ndarray:
    return (gray(seed) // 2 + 64).astype(np.uint8)


@pytest.mark.parametrize(
    ("as_stored", "dtype", "high"),
    [
        (lambda a: a.astype(np.uint16) * 16, "uint16", 4095),
        (lambda a: a.astype(np.uint16) * 4, "uint16", 1023),
        (lambda a: (a / 255e3).astype(np.float32), "float32", 0.00075),
    ],
    ids=["12 bits", "10 bits", "reals of 0 to 0.001"],
)
def test_a_range_is_found_and_used_alike(
    as_stored: Callable[[np.ndarray], np.ndarray],
    dtype: str,
    high: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    suffix = ".npy" if dtype == "float32" else ".png"
    root = pictures(tmp_path / "raw", lambda seed: as_stored(eight_bits_wide(seed)), suffix=suffix)
    with caplog.at_level(logging.WARNING):
        shards, modalities = written(root, tmp_path / "shards")
    gray_ = modalities["gray"]
    (given,) = gray_.ranges
    assert (given.dtype, given.low) == (dtype, 0)
    assert given.high == pytest.approx(high, rel=0.02)
    assert "less than 1/8 of their type's range" in caplog.text
    plain = resize(eight_bits_wide(0), Modality(name="gray", slot=0, kind="gray"), SIDE)[0].numpy()
    share = given.high / (as_stored(np.full((1, 1), 255, dtype=np.uint8)).item())
    np.testing.assert_allclose(input_of(shards, "gray") * share, plain, atol=0.004)
    file = root / "part/train/good" / f"0{suffix}"
    found = predicted(gray_, file)
    np.testing.assert_allclose(found.images_MCHW[0, 0].numpy(), input_of(shards, "gray"), atol=1e-6)
    assert not found.notes
    beyond = as_stored(np.full((8, 8), 255, dtype=np.uint8)) * 7
    assert "are clipped to the range" in predicted(gray_, beyond).notes[0]
    assert predicted(gray_, beyond).images_MCHW.max() == 1
    assert "read by their type's whole range" in predicted(gray_, eight_bits_wide(0)).notes[0]


def test_one_image_of_12_bits_among_8_and_ranges_that_differ_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures(tmp_path / "raw", eight_bits_wide)
    save(root / "part/train/good/2.png", eight_bits_wide(2).astype(np.uint16) * 16)
    with caplog.at_level(logging.WARNING):
        shards, modalities = written(root, tmp_path / "shards")
    assert modalities["gray"].ranges == (ValueRange(dtype="uint16", low=0, high=4095),)
    assert 0.2 < input_of(shards, "gray", place=2).min() < input_of(shards, "gray", place=2).max() < 0.8
    assert f"7 of uint8 ({root}/part/train/good/0.png" in caplog.text
    assert f"1 of uint16 ({root}/part/train/good/2.png)" in caplog.text
    caplog.clear()
    root = pictures(tmp_path / "mixed", lambda seed: gray(seed).astype(np.uint16) * 257)
    save(root / "part/test/good/1.png", gray(1).astype(np.uint16) * 16)
    with caplog.at_level(logging.WARNING):
        _, modalities = written(root, tmp_path / "shards")
    assert not modalities["gray"].ranges
    assert "1 of 8 images of uint16 use at most a quarter of the range 0 to 65535 that" in caplog.text
    named = [line for line in caplog.messages if f"{root}/part/test/good/1.png" in line and "use at most" in line]
    assert len(named) == 1
    (note,) = predicted(modalities["gray"], root / "part/test/good/1.png").notes
    assert "values of uint16 use at most a quarter of the range 0 to 65535 that they are read by" in note
    assert not predicted(modalities["gray"], root / "part/test/good/0.png").notes
    assert not predicted(modalities["gray"], np.full((8, 8), 20, np.uint8)).notes, "a dark picture is a dark picture"


def test_fewer_bits_than_those_of_training_are_said_in_prediction() -> None:
    trained_on_8_bits = Modality(name="gray", slot=0, kind="gray")
    (note,) = predicted(trained_on_8_bits, eight_bits_wide(0).astype(np.uint16) * 16).notes
    assert "at most a quarter of the range 0 to 65535" in note
    of_12_bits = Modality(name="gray", slot=0, kind="gray", ranges=(ValueRange(dtype="uint16", low=0, high=4095),))
    (note,) = predicted(of_12_bits, eight_bits_wide(0).astype(np.uint16) * 4).notes
    assert "at most a quarter of the range 0 to 4095" in note
    assert not predicted(of_12_bits, eight_bits_wide(0).astype(np.uint16) * 16).notes


def test_a_given_range_is_a_window(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = pictures(tmp_path / "raw", lambda seed: (gray(seed).astype(np.int16) - 100) * 8, suffix=".npy")
    with pytest.raises(ValueError, match=r"gray values are int16; .*--modality gray=gray:LOW:HIGH"):
        written(root, tmp_path / "shards")
    with caplog.at_level(logging.WARNING):
        shards, modalities = written(root, tmp_path / "shards", ["gray=gray:-400:1000"])
    stored = np.load(root / "part/train/good/0.npy").astype(np.float64)
    window = np.clip((stored + 400) / 1400, 0, 1).astype(np.float32)
    expected = resize(window, Modality(name="gray", slot=0, kind="gray"), SIDE)[0].numpy()
    np.testing.assert_allclose(input_of(shards, "gray"), expected, atol=1e-5)
    assert reading_of(modalities["gray"]) == ", -400 to 1000"
    eight = Modality(name="gray", slot=0, kind="gray", ranges=(ValueRange(dtype="any", low=0, high=4095),))
    assert resize(np.full((8, 8), 255, dtype=np.uint8), eight, SIDE).max() == 1, "8 bits cannot hold the range"
    with pytest.raises(ValueError, match="not all finite"):
        resize(np.full((8, 8), np.nan, dtype=np.float32), eight, SIDE, "a.npy")


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [
        ("uint16", 8191, 8191),
        ("uint16", 8192, None),
        ("uint16", 4096, 8191),
        ("uint16", 0, None),
        ("float32", 0.1, 0.1),
        ("float32", 0.000973, 0.00098),
        ("float64", 0.13, None),
    ],
)
def test_less_than_an_eighth_is_a_range(dtype: str, high: float, expected: float | None) -> None:
    found = found_range(np.dtype(dtype), high)
    assert (found.high if found else None) == expected


def test_the_kind_is_decided_over_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first three, even all training images, may be gray."""
    root = pictures(tmp_path / "raw", gray)
    save(root / "part/test/good/3.png", rgb(3))
    with caplog.at_level(logging.WARNING):
        _, modalities = written(root, tmp_path / "shards")
    assert modalities["rgb"].kind == "rgb"
    assert "7 of 8 images are gray, read as the same in all three channels" in caplog.text
    lines = ["class,split,image", *(f"part,train,raw/part/train/good/{n}.png" for n in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert "gray" in find_set(tmp_path / "list.csv").source.samples[0].images
    (tmp_path / "list.csv").write_text("\n".join([*lines, "part,test,raw/part/test/good/3.png"]))
    assert "rgb" in find_set(tmp_path / "list.csv").source.samples[0].images


def test_gray_for_colours_and_colours_for_gray_are_said_in_prediction() -> None:
    for_rgb, for_gray = (Modality(name="z", slot=0, kind=kind) for kind in ("rgb", "gray"))
    assert predicted(for_rgb, gray(0)).notes == ("z: gray, read as the same in all three channels",)
    assert predicted(for_gray, rgb(0)).notes == ("z: in colours, read as gray by their luminance",)
    for modality, image in ((for_rgb, rgb(0)), (for_gray, gray(0)), (for_gray, np.dstack([gray(0)] * 3))):
        assert not predicted(modality, image).notes


def relief(seed: int) -> np.ndarray:
    """In metres: 0.6 m away, some 10 mm deep."""
    return 0.6 + 0.01 * np.random.default_rng(seed).random((12, 16))


UNITS: list[tuple[Image_, str, str]] = [
    (lambda seed: np.rint(relief(seed) * 1000).astype(np.uint16), ".png", "mm"),
    (lambda seed: np.rint(relief(seed) * 1000).astype(np.int32), ".npy", "mm"),
    (lambda seed: np.rint(relief(seed) * 4000).astype(np.uint16), ".png", "0.25mm"),
    (lambda seed: (relief(seed) * 1000).astype(np.float32), ".npy", "mm"),
    (lambda seed: np.rint(-relief(seed) * 1000).astype(np.int16), ".npy", "0.001m:0"),
    (lambda seed: (54.0 / relief(seed)).astype(np.float32), ".npy", "54/disparity"),
]


@pytest.mark.parametrize(("stored", "suffix", "unit"), UNITS, ids=lambda value: value if isinstance(value, str) else "")
def test_units_as_people_say_them(
    stored: Image_, suffix: str, unit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = with_depth(tmp_path / "raw", stored, suffix)
    with caplog.at_level(logging.WARNING):
        written(root, tmp_path / "shards")
    if unit in ("mm", "0.001m:0"):
        assert "which is hardly meant" in caplog.text
        assert "say --modality depth=depth:mm (then " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        shards, modalities = written(root, tmp_path / "shards", [f"depth=depth:{unit}"])
    assert not caplog.messages
    depth = modalities["depth"]
    assert depth.dtypes == (stored(0).dtype.name,)
    sign = -1 if stored(0).dtype == np.int16 else 1
    expected = read_depth(sign * relief(0), Modality(name="z", slot=0, kind="depth")).centred()
    np.testing.assert_allclose(read_depth(stored(0), depth).centred(), expected, atol=0.08)
    found = predicted(depth, root / "part/train/good/depth" / f"0{suffix}")
    np.testing.assert_allclose(found.images_MCHW[0, 0].numpy(), input_of(shards, "depth"), atol=1e-6)
    assert not found.notes
    other = np.ones((4, 4), np.int8 if depth.dtypes == ("float32",) else np.float32)
    assert f"values are {other.dtype}, but {depth.dtypes[0]} in training" in predicted(depth, other).notes[0]
    assert predicted(depth, np.zeros((4, 4), np.dtype(depth.dtypes[0]))).notes[-1:] == (
        ("depth: no pixel was measured",) if depth.invalid == 0 or depth.disparity else ()
    )


def test_zero_that_stands_apart_was_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def with_zeros(seed: int) -> np.ndarray:
        array = relief(seed).astype(np.float32)
        array[:3] = 0
        return array

    root = with_depth(tmp_path / "raw", with_zeros)
    with caplog.at_level(logging.WARNING):
        _, modalities = written(root, tmp_path / "shards")
    assert modalities["depth"].invalid == 0
    assert "0 counts as not measured" in caplog.text
    _, modalities = written(root, tmp_path / "shards", ["depth=depth:m:none"])
    assert modalities["depth"].invalid is None
    root = with_depth(tmp_path / "heights", lambda seed: np.maximum(relief(seed) - 0.603, 0).astype(np.float32))
    assert written(root, tmp_path / "shards")[1]["depth"].invalid is None, "heights go down to 0"


def test_empty_depth_and_mixed_number_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = with_depth(tmp_path / "raw", lambda seed: relief(seed).astype(np.float32))
    empty = save(root / "part/test/good/depth/1.npy", np.full((12, 16), np.nan, np.float32))
    save(root / "part/train/good/depth/1.npy", np.zeros((12, 16), np.float32))
    with caplog.at_level(logging.WARNING):
        written(root, tmp_path / "shards")
    assert "2 of 6 images have no measured depth at all" in caplog.text
    assert str(empty) in caplog.text
    other = save(root / "part/test/good/depth/2.npy", np.rint(relief(2) * 1000).astype(np.uint16))
    with pytest.raises(ValueError, match=rf"^{other}: depth values are uint16, but float32 .*--on-error skip"):
        written(root, tmp_path / "shards")
    first = root / "part/train/good/depth/0.npy"  # whose number type decides what depth means
    first.write_bytes(b"no image")
    caplog.clear()
    index = write_shards([find_set(root).source], tmp_path / "skipped", progress=False, on_error="skip")
    assert len(index.samples) == 4
    assert index.datasets["raw"].modalities[1].dtypes == ("float32",)
    (said,) = [line for line in caplog.messages if "left out: 2 of 6 samples" in line]
    assert str(other) in said
    assert str(first) in said
    trained = Modality(name="depth", slot=0, kind="depth", dtypes=("uint16",), scale=0.5, invalid=0)
    with pytest.raises(ValueError, match=r"^sample, depth: depth values are float32, but uint16 in training"):
        predicted(trained, relief(0).astype(np.float32))
    predicted(trained.model_copy(update={"dtypes": ()}), relief(0).astype(np.float32))


def test_depth_is_analysed_once_for_input_picture_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    analysed = depth_image.no_data_values
    monkeypatch.setattr(depth_image, "no_data_values", lambda *values: calls.append(values[-1]) or analysed(*values))  # type: ignore[func-returns-value]
    catalogue = Catalogue({"set": DatasetEntry(field="x", modalities=(Modality(name="z", slot=0, kind="depth"),))}, ())
    image = relief(0)
    image[2, 3] = 3.4e38
    found = prepare_sample(InputSample("sample", {"z": image}), catalogue, None, SIDE, with_pictures=True)
    assert found.notes == ("z: pixels of 3.4e+38 count as not measured",)
    assert found.pictures
    assert calls == ["sample, z"]


def test_disparity_alone_counts_from_one_metre(tmp_path: Path) -> None:
    root = with_depth(tmp_path / "raw", lambda seed: (54.0 / relief(seed)).astype(np.float32))
    _, modalities = written(root, tmp_path / "shards", ["depth=depth:disparity"])
    assert modalities["depth"].unit == pytest.approx(54 / 0.605, rel=0.01)
    found = read_depth((54.0 / relief(0)).astype(np.float32), modalities["depth"]).centred()
    expected = read_depth(relief(0) / 0.605, Modality(name="z", slot=0, kind="depth")).centred()
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-3)


def test_the_bare_number_keeps_its_meaning_and_warns(tmp_path: Path) -> None:
    choice = parse_modality("depth=depth:0.001:0")
    assert choice == ModalityChoice("depth", "depth", 0.001, invalid=0.0, invalid_given=True)
    found = resolve_modality("depth", "depth", choice, np.dtype(np.uint16))
    assert (found.scale, found.unit, found.invalid) == (0.001, None, 0)
    assert "metres of its largest value, 65535, in uint16" in bare_number_note(choice, np.dtype(np.uint16))
    root = with_depth(tmp_path / "raw", lambda seed: np.rint(relief(seed) * 1000).astype(np.uint16), ".png")
    notices = find_set(root, modalities=[choice]).notices
    assert any("write depth:0.001m" in line for line in notices)


def test_an_old_index_says_what_it_said_and_a_new_one_says_no_more_than_it_must() -> None:
    old = {"name": "depth", "slot": 1, "kind": "depth", "scale": 0.5, "invalid": 0.0}
    modality = Modality.model_validate(old)
    assert modality.model_dump() == old
    assert json.loads(modality.model_dump_json()) == old
    stored = np.array([[0, 40000], [50000, 60000]], dtype=np.uint16)
    metres = stored / 65535 * 0.5
    expected = np.where(stored > 0, (metres - metres[stored > 0].mean()) * 100, 0)
    np.testing.assert_allclose(read_depth(stored, modality).centred(), expected, rtol=1e-6)
    later = modality.model_copy(update={"unit": 0.001, "dtypes": ("uint16",)})
    assert Modality.model_validate_json(later.model_dump_json()) == later


def test_what_means_other_things_than_in_training_is_said() -> None:
    def sets(**of_modality: object) -> dict[str, DatasetEntry]:
        entry = Modality.model_validate({"name": "z", "slot": 0, "kind": "depth", **of_modality})
        return {"parts": DatasetEntry(field="x", modalities=(entry,))}

    metres, millimetres = sets(dtypes=("float32",)), sets(unit=0.001, invalid=0)
    assert not read_otherwise(metres, sets())
    assert not read_otherwise(metres, {})
    assert not read_otherwise(metres, millimetres | {"others": metres["parts"]})
    assert read_otherwise(millimetres, metres) == [
        "z of parts (depth, a stored 1 is 0.001 m, invalid 0.0; in training: depth, scale 1 m, invalid None)"
    ]


def test_samples_describe_themselves_as_the_index_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a range became known only when all shards were written, and writing them again was interrupted."""
    root = with_depth(tmp_path / "raw", lambda seed: relief(seed).astype(np.float32))
    for path in root.rglob("rgb/*.png"):
        save(path, (rgb(int(path.stem)).astype(np.uint16) * 4)[:, :, 0])
    found, target, again = find_set(root).source, tmp_path / "shards", writing.write_settled
    calls: list[Path] = []

    def stops_at_the_second(path: Path, *others: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return again(path, *others)

    monkeypatch.setattr(writing, "write_settled", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt, match="shards are kept"):
        write_shards([found], target, progress=False, shard_bytes=4000)
    packed: list[Work] = []
    real = writing.pack_or_say
    monkeypatch.setattr(writing, "pack_or_say", lambda work, **rules: packed.append(work) or real(work, **rules))  # type: ignore[func-returns-value]
    index = write_shards([found], target, progress=False, shard_bytes=4000)
    assert packed == []
    assert verify_folder(target, progress=False) == []
    (modalities,) = {entry.modalities for entry in index.datasets.values()}
    assert modalities[0].ranges == (ValueRange(dtype="uint16", low=0, high=1023),)
    for shard in index.shards:
        with tarfile.open(target / shard.name) as tar:
            for name in (name for name in tar.getnames() if name.endswith(".json")):
                described = json.loads(tar.extractfile(name).read())["modalities"]  # type: ignore[union-attr]
                assert [Modality.model_validate(one) for one in described] == list(modalities)
    assert input_of(ShardSet.open([target]), "rgb").max() > 0.5
    straight = write_shards([found], tmp_path / "straight", progress=False, shard_bytes=4000)
    assert straight == index


def test_an_interrupted_writer_knows_what_it_had_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The range comes from all training images, those of finished shards as well."""
    root = pictures(tmp_path / "raw", lambda seed: np.full((300, 300), 40 * (seed + 1), np.uint16), suffix=".npy")
    found = find_set(root).source
    real, seen = writing.pack_or_say, []

    def fails_late(work: Work, allow_odd_masks: bool) -> PackedSample | Broken:
        seen.append(work)
        if len(seen) == 6:
            raise RuntimeError("stop")
        return real(work, allow_odd_masks)

    monkeypatch.setattr(writing, "pack_or_say", fails_late)
    with pytest.raises(RuntimeError, match="stop"):
        write_shards([found], tmp_path / "shards", shard_bytes=200_000, progress=False)
    seen.clear()
    monkeypatch.setattr(writing, "pack_or_say", lambda work, **rules: seen.append(work) or real(work, **rules))  # type: ignore[func-returns-value]
    index: Index = write_shards([found], tmp_path / "shards", shard_bytes=200_000, progress=False)
    assert 0 < len(seen) < len(found.samples)
    assert index.datasets["raw"].modalities[0].ranges == (ValueRange(dtype="uint16", low=0, high=255),)


def test_a_turned_image_and_a_mask_that_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = 6
    upright = rgb(0)
    upright[3:6, 4:9] = 255
    folder = pictures(tmp_path / "raw", rgb) / "part"
    image = folder / "test/spot/0.png"
    image.parent.mkdir()
    Image.fromarray(np.rot90(upright)).save(image, exif=exif)
    save(folder / "ground_truth/spot/0_mask.png", mask())
    with caplog.at_level(logging.WARNING):
        shards, modalities = written(tmp_path / "raw", tmp_path / "shards")
    assert f"1 of 9 images are turned as their EXIF orientation says: {image}" in caplog.text
    (refs,) = shards.classes("test").values()
    sample = shards.read(next(ref for ref in refs if ref.entry.anomalous), 48)
    plain = resize(upright, modalities["rgb"], 48).numpy()
    shown = sample.images_MCHW[0].numpy() * np.reshape(IMAGENET_STD, (3, 1, 1)) + np.reshape(IMAGENET_MEAN, (3, 1, 1))
    np.testing.assert_allclose(shown, plain, atol=1e-5)
    assert sample.mask_HW is not None
    assert shown[:, sample.mask_HW.numpy()].mean() > 0.9, "the mask lies where the bright spot is"
    found = predicted(modalities["rgb"], image)
    assert found.notes == ("rgb: turned as its EXIF orientation 6 says",)
    Image.fromarray(np.rot90(mask())).save(folder / "ground_truth/spot/0_mask.png")
    with pytest.raises(ValueError, match=r"mask .* is 12 x 16 pixels .*0\.png \(turned as its EXIF orientation 6 says"):
        written(tmp_path / "raw", tmp_path / "shards")
    Image.fromarray(np.rot90(mask())).save(folder / "ground_truth/spot/0_mask.png", exif=exif)
    shards, _ = written(tmp_path / "raw", tmp_path / "shards")
    again = shards.read(next(ref for ref in shards.classes("test")["raw/part"] if ref.entry.anomalous), 48)
    assert again.mask_HW is not None
    assert (again.mask_HW == sample.mask_HW).all()
