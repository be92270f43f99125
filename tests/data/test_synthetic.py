"""The synthetic data: repeatable, complete, and defective exactly where and in what its masks and table say."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.synthetic.catalogue import SETS, ClassSpec, draw_sample
from unimmad.data.synthetic.defects import DefectKind

SIDE = 128
CLASSES = [spec for set_spec in SETS for spec in set_spec.classes]
KINDS = [pytest.param(spec, kind, id=f"{spec.name}-{kind.name}") for spec in CLASSES for kind in spec.defects]


def decode(file: SourceFile | None) -> NDArray[np.integer]:
    assert file is not None
    return np.asarray(Image.open(io.BytesIO(file.read())))


def first_of_each_class(sets: list[SourceSet]) -> dict[str, SourceSample]:
    found: dict[str, SourceSample] = {}
    for source_set in sets:
        for sample in source_set.samples:
            found.setdefault(sample.class_name, sample)
    return found


def contents(seed: int) -> dict[str, bytes]:
    """Every file of a small version of the data."""
    files = {}
    for source_set in synthetic_sets(seed, train_per_class=1, normal_per_class=1, anomalous_per_class=1):
        for sample in source_set.samples:
            for name, file in sample.images.items():
                files[f"{sample.key} {name}"] = file.read()
            if sample.mask is not None:
                files[f"{sample.key} mask"] = sample.mask.read()
    return files


def test_same_seed_same_bytes_other_seed_other_images() -> None:
    first = contents(seed=3)
    other = contents(seed=4)
    assert contents(seed=3) == first
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if not name.endswith("mask"))


def test_every_file_can_be_drawn_in_another_process() -> None:
    """Writing in parallel sends the samples to worker processes."""
    for sample in first_of_each_class(synthetic_sets(seed=3)).values():
        there = pickle.loads(pickle.dumps(sample))
        assert {name: file.read() for name, file in there.images.items()} == {
            name: file.read() for name, file in sample.images.items()
        }


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    few = synthetic_sets(train_per_class=2, normal_per_class=1, anomalous_per_class=0)
    many = synthetic_sets(train_per_class=5, normal_per_class=3, anomalous_per_class=4)
    by_key = {sample.key: sample for source_set in many for sample in source_set.samples}
    for sample in few[0].samples:
        assert sample.images["rgb"].read() == by_key[sample.key].images["rgb"].read()


def test_counts_fields_and_modalities() -> None:
    sets = synthetic_sets()
    assert len({source_set.entry.field for source_set in sets}) >= 3
    assert {len(source_set.entry.modalities) for source_set in sets} == {1, 2, 3, 4}
    for source_set in sets:
        keys = [sample.key for sample in source_set.samples]
        assert len(set(keys)) == len(keys)
        modalities = source_set.entry.modalities
        assert [modality.slot for modality in modalities] == list(range(len(modalities)))
        for name in {sample.class_name for sample in source_set.samples}:
            samples = [sample for sample in source_set.samples if sample.class_name == name]
            assert sum(sample.split == "train" for sample in samples) == 28
            assert sum(sample.split == "test" and not sample.anomalous for sample in samples) == 12
            assert sum(sample.split == "test" and sample.anomalous for sample in samples) == 14
            assert not any(sample.anomalous for sample in samples if sample.split == "train")
            assert all(list(sample.images) == [m.name for m in modalities] for sample in samples)
    assert len(first_of_each_class(sets)) >= 8


def test_every_kind_of_defect_appears() -> None:
    drawn = {
        (sample.class_name, sample.defect)
        for source_set in synthetic_sets()
        for sample in source_set.samples
        if sample.anomalous
    }
    assert drawn == {(spec.name, kind.name) for spec in CLASSES for kind in spec.defects}


def test_several_kinds_show_in_one_of_several_modalities_only() -> None:
    several = [set_spec for set_spec in SETS if len(set_spec.entry.modalities) > 1]
    alone = {
        (kind.name, kind.modalities[0])
        for set_spec in several
        for spec in set_spec.classes
        for kind in spec.defects
        if len(kind.modalities) == 1
    }
    assert len(alone) >= 4
    assert {"rgb", "depth", "infrared", "t1ce", "t2"} <= {modality for _, modality in alone}


def test_files_are_png_of_the_promised_form() -> None:
    for name, sample in first_of_each_class(synthetic_sets(train_per_class=1)).items():
        for modality, file in sample.images.items():
            image = decode(file)
            assert file.suffix == ".png"
            assert image.shape == ((SIDE, SIDE, 3) if modality == "rgb" else (SIDE, SIDE)), (name, modality)
            assert (image.dtype.itemsize == 1) == (modality != "depth"), (name, modality)


def test_depth_is_metres_with_a_few_invalid_pixels() -> None:
    for sample in first_of_each_class(synthetic_sets(train_per_class=1)).values():
        if "depth" not in sample.images:
            continue
        stored = decode(sample.images["depth"]).astype(float)
        assert 0 < (stored == 0).mean() < 0.05
        metres = stored[stored > 0] / 65535 * 0.5
        assert metres.min() > 0.2
        assert metres.max() < 0.27


def test_masks_are_black_and_white_and_not_empty() -> None:
    sets = synthetic_sets(train_per_class=0, normal_per_class=1, anomalous_per_class=4)
    for sample in [sample for source_set in sets for sample in source_set.samples]:
        assert (sample.mask is not None) == sample.anomalous
        if sample.anomalous:
            mask = decode(sample.mask)
            assert set(np.unique(mask)) == {0, 255}
            assert (mask > 0).sum() >= 40, sample.key


@pytest.mark.parametrize(("spec", "kind"), KINDS)
def test_a_defect_is_where_its_mask_says_and_in_no_other_modality(spec: ClassSpec, kind: DefectKind) -> None:
    noise = {"depth": 60}  # steps of 8 micrometres; the grey images' unit is one of 255
    for number in range(5):
        damaged = draw_sample(0, spec, "test", number, kind)
        normal = draw_sample(0, spec, "test", number, None)
        assert damaged.mask_HW.any()
        assert not normal.mask_HW.any()
        changed = []
        for name, image in normal.images.items():
            change = np.abs(damaged.images[name].astype(int) - image.astype(int))
            change_HW = change.max(axis=-1) if change.ndim == 3 else change
            assert not change_HW[~damaged.mask_HW].any()
            if name in kind.modalities:
                changed.append((change_HW > noise.get(name, 4))[damaged.mask_HW])
            else:
                assert not change_HW.any()
        assert np.any(changed, axis=0).mean() > 0.6, (spec.name, kind.name, number)


def test_training_and_test_normals_are_alike() -> None:
    """Same distribution: mean brightness does not tell the splits apart, and no image comes twice."""
    for spec in CLASSES:
        train = [draw_sample(0, spec, "train", number, None).images for number in range(12)]
        test = [draw_sample(0, spec, "test", number, None).images for number in range(12)]
        name = next(iter(train[0]))
        train_means, test_means = ([float(images[name].mean()) for images in split] for split in (train, test))
        assert len(set(train_means + test_means)) > 12
        spread = np.std(train_means + test_means)
        assert abs(np.mean(train_means) - np.mean(test_means)) < 1.5 * spread


@pytest.mark.parametrize("argument", ["seed", "train_per_class", "normal_per_class", "anomalous_per_class"])
def test_negative_numbers_are_refused_by_name(argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        synthetic_sets(**{argument: -1})
