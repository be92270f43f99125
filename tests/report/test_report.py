from __future__ import annotations

import json

import pytest

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.report import ClassResult, Report, from_json, to_json

IMAGE_KEYS = METRIC_KEYS[:3]


def result(dataset, class_name, value, undefined=()):
    metrics = {key: None if key in undefined else value for key in METRIC_KEYS}
    return ClassResult(dataset, "industry", class_name, normal=4, anomalous=5, metrics=metrics)


def three_classes():
    return Report(
        header={"recipe": "demo"},
        classes=(result("a", "x", 0.2), result("a", "y", 0.4, undefined=IMAGE_KEYS), result("b", "x", 0.9)),
    )


def test_the_three_kinds_of_mean():
    report = three_classes()
    assert report.datasets == ("a", "b")
    assert report.mean_of_dataset("a").metrics["AUPRO"] == pytest.approx(0.3)
    assert report.mean_of_classes().metrics["AUPRO"] == pytest.approx(0.5)
    assert report.mean_of_datasets().metrics["AUPRO"] == pytest.approx(0.6)


def test_undefined_values_are_left_out_and_counted():
    report = three_classes()
    mean = report.mean_of_dataset("a")
    assert mean.metrics["I-AUROC"] == pytest.approx(0.2)
    assert (mean.covered["I-AUROC"], mean.covered["AUPRO"], mean.members) == (1, 2, 2)
    assert mean.incomplete == dict.fromkeys(IMAGE_KEYS, 1)
    assert report.mean_of_classes().metrics["I-AUROC"] == pytest.approx(0.55)


def test_a_data_set_without_a_defined_class_does_not_count():
    report = Report({}, (result("a", "x", 0.2), result("b", "x", 0.9, undefined=METRIC_KEYS)))
    mean = report.mean_of_datasets()
    assert mean.metrics["P-AP"] == pytest.approx(0.2)
    assert (mean.covered["P-AP"], mean.members) == (1, 2)
    assert report.mean_of_dataset("b").metrics["P-AP"] is None


def test_json_round_trip_with_null_for_undefined():
    report = three_classes()
    content = json.loads(to_json(report))
    assert content["classes"][1]["metrics"]["I-AP"] is None
    assert content["header"] == {"recipe": "demo"}
    assert content["means"][-1]["name"] == "mean of datasets"
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "hea', "not JSON"),
        ("[]", "not of format 1"),
        ('{"format": 9}', "not of format 1"),
        ('{"format": 1, "header": {}}', "the report: classes: Field required; evaluate again"),
        ('{"format": 1, "header": {}, "classes": [3]}', "classes.0: Input should be a valid dict"),
        ('{"format": 1, "header": {}, "classes": []}', "classes: .* at least 1 item"),
        ('{"format": 1, "header": {"a": 5}, "classes": []}', "header.a: Input should be a valid string"),
        ('{"format": 1, "header": {}, "classes": [{"metrics": {"I-AP": 1}}]}', "classes.0.dataset: Field required"),
    ],
)
def test_a_broken_report_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report["classes"][0]["metrics"].pop("I-AUROC"), r"classes\.0\.metrics: no entry 'I-AUROC'"),
        (lambda report: report["classes"][0]["metrics"].update({"I-AP": float("nan")}), r"I-AP: .* finite number"),
        (lambda report: report["classes"][0]["metrics"].update({"I-AP": 1.5}), r"I-AP: Input should be less than"),
        (lambda report: report["classes"][0].update(normal=float("inf")), r"normal: Input should be a valid integer"),
        (lambda report: report["classes"][0].update({"class": "a/b"}), r"class: String should match"),
        (lambda report: report["classes"].append(report["classes"][0]), "is listed twice"),
        (lambda report: report.update(published=[{"dataset": "a"}]), r"published\.0\.name: Field required"),
    ],
)
def test_an_altered_report_is_refused_naming_the_entry(change, message):
    content = json.loads(to_json(three_classes()))
    change(content)
    with pytest.raises(ValueError, match=f"the report: .*{message}.*; evaluate again") as refused:
        from_json(json.dumps(content))
    assert "\n" not in str(refused.value)
