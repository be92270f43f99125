"""result.json, and what several seeds come to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_results import result, seeds_of

from unimmad.comparing.results import (
    Result,
    Spread,
    best_of,
    by_method,
    read_result,
    spreads,
    told_recipe,
    write_result,
)
from unimmad.config import load_recipe, override_recipe
from unimmad.methods.registry import METHOD_SETTINGS
from unimmad.metrics.metrics import METRIC_KEYS

NAMES = ("industry/plate", "industry/nut")


def test_what_is_written_is_read(tmp_path):
    made = result("rd", {"a/b": 0.25, "a/c": None}, seed=4, minutes=None)
    assert read_result(write_result(tmp_path, made, "f" * 64)) == (made, "f" * 64)


def test_a_result_keeps_the_recipe_that_makes_it_again(tmp_path):
    recipe = load_recipe("quick", ["training.steps=7", "model.backbone_weights=folder/of/somebody/net.pth"])
    made = replace(result("quick", {"a/b": 0.25}), recipe=told_recipe(recipe))
    read, _ = read_result(write_result(tmp_path, made, "f"))
    assert read == made
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(read.recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == override_recipe(recipe, ["model.backbone_weights=net.pth"])


def test_a_result_of_an_earlier_version_kept_no_recipe(tmp_path):
    path = write_result(tmp_path, result("rd", {"a/b": 0.25}), "f")
    content = json.loads(path.read_text())
    del content["recipe"]
    path.write_text(json.dumps(content))
    assert read_result(path)[0].recipe is None


def changed(tmp_path: Path, **changes) -> Path:
    path = write_result(tmp_path, result("rd", {"a/b": 0.25}), "f")
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"classes": []},
        {"classes": [{"dataset": "a"}]},
        {"steps": -1},
        {"minutes": "long"},
        {"cost": {}},
        {"method": 3},
        {"fingerprint": None},
    ],
)
def test_a_result_of_another_form_is_refused_in_one_line(tmp_path, changes):
    with pytest.raises(ValueError, match=r"result\.json.*remove it and compare again") as told:
        read_result(changed(tmp_path, **changes))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"[]", b"\xff\xfe", b"NaN", b"[" * 5000])
def test_a_damaged_result_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json") as told:
        read_result(path)
    assert "\n" not in str(told.value)


def test_unknown_keys_of_later_versions_are_passed_over(tmp_path):
    assert read_result(changed(tmp_path, added_later=1))[0].method == "rd"


def test_mean_and_standard_deviation_are_those_of_a_sample():
    found = seeds_of("rd", "a/b", [0.5, 0.7, 0.9]).of_class("a", "b")["I-AP"]
    assert found is not None
    assert (found.mean, found.std) == (pytest.approx(0.7), pytest.approx(0.2))
    assert seeds_of("rd", "a/b", [0.5]).of_class("a", "b")["I-AP"] == Spread(0.5, None)
    assert seeds_of("rd", "a/b", [0.5, None]).of_class("a", "b")["I-AP"] is None, "a mean of fewer seeds is another"


def test_the_means_spread_is_that_of_the_seeds_means():
    """Classes that vary against each other: their mean does not vary."""
    by_seed = [result("rd", {"a/b": 0.4 + d, "a/c": 0.6 - d}, seed) for seed, d in enumerate((0.0, 0.1, 0.2))]
    (method,) = by_method(by_seed, [])
    mean = method.of_dataset("a")["AUPRO"]
    assert mean is not None
    assert (mean.mean, mean.std) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))


def test_the_mean_of_datasets_weighs_each_alike():
    (method,) = by_method([result("rd", {"a/b": 0.2, "a/c": 0.4, "z/d": 0.9})], [])
    assert method.of_all()["P-AP"] == Spread(pytest.approx(0.6), None)


@pytest.mark.parametrize(
    ("of_methods", "best"),
    [
        ({"a": (0.9, None), "b": (0.8, None)}, {"a"}),
        ({"a": (0.9, None), "b": (0.9, None)}, {"a", "b"}),
        ({"a": (0.9, 0.02), "b": (0.89, 0.001), "c": (0.85, 0.03)}, {"a", "b"}),
        ({"a": (0.9, 0.001), "b": (0.85, 0.06), "c": (0.7, 0.001)}, {"a", "b"}),
        ({"a": (0.9, 0.01), "b": None}, {"a"}),
        ({"a": None}, set()),
    ],
)
def test_what_differs_by_less_than_the_seeds_is_best_too(of_methods, best):
    assert best_of({name: value and Spread(*value) for name, value in of_methods.items()}) == best


def test_seeds_are_in_order_and_methods_as_asked_for_with_those_of_elsewhere_behind():
    results = [result(method, {"a/b": 0.5}, seed) for method, seed in (("x", 1), ("b", 2), ("a", 0), ("b", 0))]
    found = by_method(results, ["a", "b"])
    assert [(one.method, [r.seed for r in one.results]) for one in found] == [("a", [0]), ("b", [0, 2]), ("x", [1])]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([result("a", {"a/b": 0.1}, 3)] * 2, "there are two results of a, seed 3"),
        ([result("a", {"a/b": 0.1}, 0), result("a", {"a/c": 0.1}, 1)], "results of a are over different classes"),
    ],
)
def test_results_that_do_not_go_together(results, said):
    with pytest.raises(ValueError, match=said):
        by_method(results, [])


def test_variants_are_not_mixed_as_seeds_of_one_method():
    def made(seed: int, *settings: str) -> Result:
        recipe = told_recipe(load_recipe("quick", [f"training.seed={seed}", *settings]))
        return replace(result("plain", {"a/b": 0.5}, seed), recipe=recipe)

    alike = [made(0, "training.steps=7"), made(1, "training.steps=9", "training.warmup_steps=1")]
    of_earlier = result("plain", {"a/b": 0.5}, 2)
    assert len(by_method([*alike, of_earlier], [])[0].results) == 3
    younger = dict(of_search := told_recipe(load_recipe("best", methods=METHOD_SETTINGS)))
    older = younger | {"model": of_search["model"] | {"search": {"patches": 8000}}}
    by_search = [replace(result("best", {"a/b": 0.5}, seed), recipe=one) for seed, one in enumerate((younger, older))]
    assert by_method(by_search, []), "a setting that one of them does not know yet"
    for setting, said in [
        ("data.sampling=natural", "differ in data.sampling: balanced; natural"),
        ("training.drawn_share=0", r"differ in training.drawn_share: 0.5; 0.0; variants need labels of their own"),
        ("model.embed_dim=32", "differ in model.embed_dim: 64; 32"),
    ]:
        with pytest.raises(ValueError, match=f"the results of plain {said}"):
            by_method([*alike, made(3, setting)], [])


def test_every_metric_has_its_spread():
    assert list(spreads([dict.fromkeys(METRIC_KEYS, 0.5)])) == list(METRIC_KEYS)
