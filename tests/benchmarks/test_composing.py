from __future__ import annotations

import pytest
import torch

from benchmarks import composing
from benchmarks.composing import composing_table
from unimmad.config import load_recipe
from unimmad.training.composing import Place, measure_place, there_and_back

CPU = torch.device("cpu")


@pytest.mark.parametrize("place", [Place(0, 1), Place(1, 5), Place(2, 3)])
def test_both_ways_do_the_same_work(place):
    settings = load_recipe("tiny").model
    composed, apart = (there_and_back(settings, place, CPU, "fp32", (2, 1), way) for way in (True, False))
    gradients = composed()
    torch.testing.assert_close(apart(), gradients, rtol=1e-3, atol=1e-5 * float(gradients.abs().max()))
    torch.testing.assert_close(composed(), gradients)  # nothing is left of the pass before
    assert min(measure_place(settings, place, CPU, "fp32", (1,), repeats=1)) > 0


def test_the_table_says_what_the_rule_chooses_and_what_it_gains(monkeypatch):
    seconds = {False: (0.003, 0.002), True: (0.002, 0.005)}
    monkeypatch.setattr(composing, "composing_is_cheaper", lambda embed, positions, size: positions > 16)
    monkeypatch.setattr(composing, "measure_place", lambda settings, place, *_: seconds[place.level < 2])
    table = composing_table("tiny", "cpu", "fp32", 2, repeats=1).splitlines()[4:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert cells[0] == ["16 x 16", "1 x 1", "2.0", "5.0", "composed", "2.50"]
    assert cells[-1] == ["4 x 4", "5 x 5", "3.0", "2.0", "one after the other", "1.50"]
    assert len(cells) == 9
