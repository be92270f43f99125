"""Training images that are unlike their class: found, ranked, and never compared with themselves."""

from __future__ import annotations

import torch
from audit.made import audited, make_parts

from unimmad.audit.facts import SampleFacts
from unimmad.audit.suspects import DIM, GRID, check_suspects, leave_one_out, rank_suspects


def test_an_image_is_compared_with_others_only_and_the_odd_patch_is_found(tmp_path) -> None:
    samples: tuple[SampleFacts, ...] = audited(make_parts(tmp_path)).samples
    generator = torch.Generator().manual_seed(1)
    patches = [torch.randn(GRID**2, DIM, generator=generator).half() for _ in range(12)]
    patches[5][37] += 4
    ranked = rank_suspects(samples, {(samples[0].class_name, "rgb"): patches})
    [first, *others] = ranked[samples[0].class_name]
    assert first.sample.key == samples[5].key
    assert first.distances_hw.argmax() == 37
    assert len(others) == 11
    assert first.deviations > 5 > others[0].deviations
    [finding] = check_suspects(ranked)
    assert finding.count == 1


def test_distances_are_those_of_a_naive_search() -> None:
    patches_NPE = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    found_NP = leave_one_out(patches_NPE)  # so few that every patch is in the bank
    for number in range(4):
        others = patches_NPE[[other for other in range(4) if other != number]].flatten(0, 1)
        naive_P = torch.cdist(patches_NPE[number], others).amin(1)
        torch.testing.assert_close(found_NP[number], naive_P)
