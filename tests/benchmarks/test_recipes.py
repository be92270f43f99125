from __future__ import annotations

import pytest

from benchmarks.recipes import measured_recipe
from unimmad.model.unimmad import UniMMAD


def test_a_recipe_with_a_search_is_measured_without_it():
    recipe = measured_recipe("demo")
    assert recipe.method == "unimmad_search"
    model = UniMMAD(recipe.model)
    assert not any("search" in name for name in model.state_dict())


def test_a_recipe_of_another_method_is_refused_in_one_line():
    with pytest.raises(ValueError, match="method 'rd' is not one of unimmad, unimmad_search") as told:
        measured_recipe("rd")
    assert "\n" not in str(told.value)
