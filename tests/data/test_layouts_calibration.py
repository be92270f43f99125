from collections import Counter
from pathlib import Path

import pytest
from disk_sets import make_mvtec, rgb, save

from unimmad.data.layouts import find_set
from unimmad.data.layouts.calibration import set_aside
from unimmad.data.layouts.source_set import SourceSample


def samples(**train_counts: int) -> list[SourceSample]:
    return [
        SourceSample(f"{name}-{split}-{number}", name, split, "good", {}, None)  # type: ignore[arg-type]
        for name, count in train_counts.items()
        for split, many in (("train", count), ("test", 3))
        for number in range(many)
    ]


def aside(found: list[SourceSample]) -> set[str]:
    return {sample.key for sample in found if sample.split == "calibration"}


def test_a_share_of_each_class() -> None:
    found = set_aside(samples(a=40, b=7, c=2, d=1), 0.1, seed=0)
    counts = Counter((sample.class_name, sample.split) for sample in found)
    assert {name: counts[name, "calibration"] for name in "abcd"} == {"a": 4, "b": 1, "c": 1, "d": 0}
    assert {name: counts[name, "train"] for name in "abcd"} == {"a": 36, "b": 6, "c": 1, "d": 1}
    assert all(counts[name, "test"] == 3 for name in "abcd")


def test_depends_on_seed_and_keys_alone() -> None:
    all_ = samples(a=40)
    first = aside(set_aside(all_, 0.2, seed=0))
    assert aside(set_aside(all_[::-1], 0.2, seed=0)) == first
    assert aside(set_aside(all_, 0.2, seed=1)) != first
    assert aside(set_aside(all_, 0.4, seed=0)) > first
    assert set_aside(all_, 0.0, seed=0) == all_


def test_one_training_sample_stays() -> None:
    counts = Counter(sample.split for sample in set_aside(samples(a=5), 0.99, seed=0))
    assert (counts["train"], counts["calibration"]) == (1, 4)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ValueError, match="calibration share"):
        set_aside(samples(a=3), share, seed=0)


def test_own_images_give_a_tenth_by_default(tmp_path: Path) -> None:
    for number in range(20):
        save(make_mvtec(tmp_path) / "bolt/train/good" / f"more{number}.png", rgb(number))
    assert len(aside(list(find_set(tmp_path, calibration_fraction=None).source.samples))) == 2
    assert len(aside(list(find_set(tmp_path).source.samples))) == 0
    assert len(aside(list(find_set(tmp_path, calibration_fraction=0.5).source.samples))) == 12
