"""Which samples methods disagree on, and their maps side by side."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.comparing.disputed import Disputed, class_limits, disputed_figure, most_disputed, pictures_of
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.report.figures import SamplePicture, save_figure
from unimmad.report.table import Table
from unimmad.report.tables import IMAGE_SCORES

METHODS = ("ours", "theirs")


def evaluation(folder: Path, scores: dict[str, float], class_name: str = "nut", of_dataset: str = "a") -> Path:
    """An evaluation folder's image scores, by key; what is called anomalous is."""
    rows = [
        (of_dataset, class_name, key, "scratch" if "bad" in key else "good", "1", repr(v)) for key, v in scores.items()
    ]
    folder.mkdir(exist_ok=True)
    table = Table(("dataset", "class", "key", "defect", "anomalous", "score"), rows)
    with (folder / IMAGE_SCORES).open("a") as file:
        text = table.to_csv()
        file.write(text if file.tell() == 0 else text.partition("\n")[2])
    return folder


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Of five samples of one class: the methods agree on the middle one alone."""
    ours = {"0": 0.1, "1": 0.2, "2": 0.3, "3": 0.4, "bad": 0.5}
    theirs = {"0": 50.0, "1": 20.0, "2": 30.0, "3": 40.0, "bad": 10.0}
    return {name: evaluation(tmp_path / name, scores) for name, scores in zip(METHODS, (ours, theirs), strict=True)}


def test_those_whose_ranks_differ_most_come_first(folders):
    found = most_disputed(folders, of_a_class=9)
    assert [sample.name[1] for sample in found][:2] == ["0", "bad"]
    assert found[0].ranks == {"ours": 0.0, "theirs": 1.0}
    assert found[1].defect == "scratch"
    assert [sample.disagreement for sample in found] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_ranks_are_shares_of_the_class_and_halve_what_ties(tmp_path):
    ours = evaluation(tmp_path / "ours", {"x": 1.0, "y": 1.0, "z": 3.0})
    (of_x, of_y, of_z) = sorted(most_disputed({"ours": ours}), key=lambda sample: sample.name)
    assert (of_x.ranks["ours"], of_y.ranks["ours"], of_z.ranks["ours"]) == (0.25, 0.25, 1.0)


def test_scales_do_not_matter_and_classes_do_not_mix(tmp_path, folders):
    for name, folder in folders.items():
        evaluation(folder, {"p": 1e6 if name == "ours" else 1e-6, "q": 2e6 if name == "ours" else 2e-6}, "plate")
    found = {sample.name: sample.disagreement for sample in most_disputed(folders, of_a_class=9)}
    assert found["a/plate", "p"] == found["a/plate", "q"] == 0.0


def test_a_few_of_each_class_and_not_more_than_asked_for(folders):
    assert len(most_disputed(folders, of_a_class=2)) == 2
    assert len(most_disputed(folders, count=3, of_a_class=9)) == 3


def test_only_samples_that_every_method_scored(folders):
    evaluation(folders["ours"], {"more": 0.9})
    assert "more" not in {sample.name[1] for sample in most_disputed(folders, of_a_class=9)}
    assert most_disputed({}) == []


@pytest.mark.parametrize("content", [b"", b"dataset,class\n1,2\n", b"\xff\xfe\x00", None])
def test_scores_that_cannot_be_read_are_said_in_one_line(folders, content):
    file = folders["ours"] / IMAGE_SCORES
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    if content == b"":
        assert most_disputed(folders) == []
        return
    with pytest.raises(ValueError, match=r"image_scores\.csv can't be read") as told:
        most_disputed(folders)
    assert "\n" not in str(told.value)


def test_pictures_by_name_without_samples_that_are_gone(tmp_path):
    shards = ShardSet.open([hand_made_shards(tmp_path / "shards", ["solids"])])
    hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [])
    class_name, refs = next(iter(shards.classes("test").items()))
    there, gone = ((class_name, key) for key in (refs[0].entry.key, "gone"))
    samples = [Disputed(name, "good", {}) for name in (gone, there)]
    found = pictures_of(tmp_path / "run", shards, samples, torch.device("cpu"), None)
    assert list(found) == [there]
    assert (found[there].class_name, found[there].key) == there
    assert np.isfinite(found[there].map_HW).all()


def picture(key: str, level: float, images: int = 2, mask: bool = True) -> SamplePicture:
    map_HW = np.linspace(0, level, 64).reshape(8, 8)
    drawn = [(f"view $x_{number}$", np.full((8, 8, 3), 0.5)) for number in range(images)]
    return SamplePicture(
        class_name="a/nut $y$",
        key=key,
        defect="good",
        score=level,
        images=tuple(drawn),
        map_HW=map_HW,
        mask_HW=map_HW > level / 2 if mask else None,
    )


def test_the_figure_has_every_modality_the_mask_and_every_methods_map(tmp_path):
    of_methods = {f"m$^{number}": picture("k_{", 1.0 + number) for number in range(3)}
    sample = Disputed(("a/nut", "k"), "a $ crack", dict.fromkeys(of_methods, 0.25))
    limits = {name: class_limits([made]) for name, made in of_methods.items()}
    figure = disputed_figure(sample, of_methods, limits)
    titles = [ax.get_title() for ax in figure.axes]
    assert len(titles) == 2 + 1 + 3
    assert [re.sub(r"\\", "", title) for title in titles[3:]] == [f"m$^{number}: above 25%" for number in range(3)]
    save_figure(figure, tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 1000


def test_a_sample_without_a_mask_has_a_blank_place(tmp_path):
    of_methods = {"ours": picture("k", 1.0, images=1, mask=False)}
    limits = {"ours": class_limits(of_methods.values())}
    figure = disputed_figure(Disputed(("a/nut", "k"), "good", {"ours": 1.0}), of_methods, limits)
    assert len(figure.axes) == 3


def test_a_methods_colours_span_its_own_maps_of_the_class():
    low, high = class_limits([picture("x", 1.0), picture("y", 9.0)])["a/nut $y$"]
    assert (low, high) == (pytest.approx(1.0, abs=1.5), 9.0)
