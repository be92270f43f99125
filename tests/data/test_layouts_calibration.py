from collections import Counter
from pathlib import Path

import pytest
from disk_sets import make_mvtec, rgb, save

from unimmad.data.layouts import find_set
from unimmad.data.layouts.calibration import not_set_aside, place, set_aside
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


def test_about_a_share_of_each_class_and_nothing_of_the_test_split() -> None:
    found = set_aside(samples(a=400, b=400), 0.1, seed=0)
    counts = Counter((sample.class_name, sample.split) for sample in found)
    for name in "ab":
        assert 25 <= counts[name, "calibration"] <= 55
        assert counts[name, "train"] + counts[name, "calibration"] == 400
        assert counts[name, "test"] == 3


def test_depends_on_seed_and_own_key_alone() -> None:
    all_ = samples(a=110)
    first = aside(set_aside(all_, 0.2, seed=0))
    assert aside(set_aside(all_[::-1], 0.2, seed=0)) == first
    assert aside(set_aside(all_, 0.2, seed=1)) != first
    assert aside(set_aside(all_, 0.4, seed=0)) > first
    assert set_aside(all_, 0.0, seed=0) == all_
    for count in range(10, 110):  # adding an image moves no other one
        assert aside(set_aside(samples(a=count), 0.2, seed=0)) == {
            key for key in first if int(key.rpartition("-")[2]) < count
        }


def test_small_classes_that_give_none_are_named_and_one_that_would_give_all_is_refused() -> None:
    of_two = [sample for sample in samples(a=40, b=40) if sample.class_name == "a" or place(sample.key, 0) > 0.1]
    note = not_set_aside(set_aside(of_two, 0.1, seed=0))
    assert "b (" in note
    assert "a (" not in note
    assert not_set_aside(set_aside(samples(a=400), 0.1, seed=0)) == ""
    with pytest.raises(ValueError, match=r"class a: the calibration split would take all of its 2 training images"):
        set_aside(samples(a=2), 0.9999, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ValueError, match="calibration share"):
        set_aside(samples(a=3), share, seed=0)


def test_own_images_give_a_tenth_by_default(tmp_path: Path) -> None:
    for number in range(20):
        save(make_mvtec(tmp_path) / "bolt/train/good" / f"more{number}.png", rgb(number))
    whole = find_set(tmp_path).source.samples
    assert aside(list(whole)) == set()
    for given, share in ((None, 0.1), (0.5, 0.5)):
        found = aside(list(find_set(tmp_path, calibration_fraction=given).source.samples))
        assert found == aside(set_aside(whole, share, seed=0)) != set()
