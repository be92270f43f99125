"""Usage counted with array operations against a loop over tokens."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import torch

from unimmad.data.sample import Sample
from unimmad.model.routing import Routing
from unimmad.report.expert_usage import (
    ClassUsage,
    UsageCounter,
    UsageEntry,
    chosen_leaders,
    read_usage,
    rows_by_modality,
    shares_by_dataset,
    usage_entry,
)

LEADERS, TOP_K, LEVELS, BRANCHES = 6, 2, 3, 2
SLOTS = {"rgb": 0, "infrared": 1, "depth": 2}


def sample(modalities):
    slots = tuple(SLOTS[name] for name in modalities)
    return Sample("key", "set", "set/plate", "good", False, modalities, slots, torch.empty(0), None)


def routings(tokens, rng):
    def routing():
        leaders = np.stack([rng.choice(LEADERS, TOP_K, replace=False) for _ in range(tokens)])
        nothing = torch.empty(0)
        return Routing(nothing, nothing, torch.from_numpy(leaders), nothing)

    return [[routing() for _ in range(BRANCHES)] for _ in range(LEVELS)]


def usage(dataset, class_name, counts, modalities=("rgb",), tokens=None):
    """From counts [M][G][L]; by default each token goes to one leader."""
    counts_MGL = np.array(counts)
    tokens_M = counts_MGL[:, 0].sum(axis=1) if tokens is None else np.array(tokens)
    return ClassUsage(dataset, class_name, modalities, counts_MGL, tokens_M)


def test_counts_are_those_of_a_loop_over_tokens():
    rng = np.random.default_rng(0)
    batches = [[sample(("rgb", "depth")), sample(("rgb",))], [sample(("rgb", "infrared", "depth"))] * 3]
    counter = UsageCounter("set/plate/of steel", LEADERS)
    naive: Counter = Counter()
    for samples in batches:
        names = [name for found in samples for name in found.modalities]
        routed = routings(len(names), rng)
        counter.add(samples, chosen_leaders(routed))
        for level in range(LEVELS):
            for branch in range(BRANCHES):
                for token, name in enumerate(names):
                    for leader in routed[level][branch].leaders_TK[token].tolist():
                        naive[name, level * BRANCHES + branch, leader] += 1
    found = counter.usage()
    assert (found.dataset, found.class_name) == ("set", "plate/of steel")
    assert found.modalities == ("rgb", "infrared", "depth")
    assert found.tokens_M.tolist() == [5, 3, 4]
    assert found.counts_MGL.shape == (3, LEVELS * BRANCHES, LEADERS)
    for m, name in enumerate(found.modalities):
        for gate in range(LEVELS * BRANCHES):
            for leader in range(LEADERS):
                assert found.counts_MGL[m, gate, leader] == naive[name, gate, leader]
    np.testing.assert_array_equal(found.counts_MGL.sum(axis=2), TOP_K * found.tokens_M[:, None].repeat(6, axis=1))


def test_rows_pool_the_classes_of_a_set_and_keep_modalities_apart():
    usages = [
        usage("a", "x", [[[6, 2]], [[1, 1]]], ("rgb", "depth"), tokens=[4, 1]),
        usage("a", "y", [[[0, 8]]], tokens=[4]),
        usage("b", "x", [[[2, 0]]], tokens=[2]),
    ]
    rows = rows_by_modality(usages)
    assert [(row.dataset, row.modality) for row in rows] == [("a", "rgb"), ("a", "depth"), ("b", "rgb")]
    assert [row.frequency_GL.tolist() for row in rows] == [[[0.75, 1.25]], [[1, 1]], [[1, 0]]]


def test_shares_give_modalities_classes_and_sets_the_same_weight():
    first = usage("a", "x", [[[30, 10]], [[0, 4]]], ("rgb", "depth"))
    np.testing.assert_allclose(first.shares, [[0.375, 0.625]])
    shares = shares_by_dataset([first, usage("a", "y", [[[1, 0]]]), usage("b", "x", [[[0, 7]]])])
    assert list(shares) == ["a", "b"]
    np.testing.assert_allclose(shares["a"], [[0.6875, 0.3125]])
    np.testing.assert_allclose(shares["b"], [[0, 1]])


def test_usage_survives_json():
    before = usage("a", "x", [[[6, 2]], [[1, 1]]], ("rgb", "depth"), tokens=[4, 1])
    after = read_usage(UsageEntry.model_validate(json.loads(json.dumps(usage_entry(before)))))
    assert (after.dataset, after.class_name, after.modalities) == ("a", "x", ("rgb", "depth"))
    np.testing.assert_array_equal(after.counts_MGL, before.counts_MGL)
    np.testing.assert_array_equal(after.tokens_M, before.tokens_M)
