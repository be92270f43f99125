"""Banks that grow: what they take, and that no distance gets larger."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from methods.test_added_class import NEW, bank_of, reconstructing
from methods.test_level_search import TEST, TRAIN
from methods.test_level_search import fitted as level_search
from methods.test_memory_bank import FEW_FEATURES, SIZE, Maker, tokens

from unimmad.methods import discriminator, growing
from unimmad.methods.added_class import WithAddedClasses
from unimmad.methods.banks import Banks, BankSettings
from unimmad.methods.growing import append_rows, bank_digest, lacking_rows, why_fixed, why_full
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings
from unimmad.methods.patch_collection import GB, BankName
from unimmad.model.method import Method


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminator, "STEPS", 10)


def bank(scaling: str, neighbours: int = 1) -> Banks:
    settings = BankSettings(coreset="none", neighbours=neighbours)
    found = Banks(settings, 4, 1, scaling)
    generator = torch.Generator().manual_seed(0)
    for key in ("a", "b"):
        found.add([BankName("set/cup", 0)], [key], torch.rand(1, 40, 4, generator=generator))
    found.finish(lambda given: given)
    return found


@pytest.mark.parametrize(("scaling", "neighbours"), [("none", 1), ("deviation", 1), ("normal", 3)])
def test_no_distance_gets_larger_and_what_was_lacking_is_near(scaling, neighbours):
    banks = bank(scaling, neighbours)
    generator = torch.Generator().manual_seed(1)
    others_thwD = 2 * torch.rand(5, 6, 6, 4, generator=generator) - 0.5
    image_PD = torch.rand(50, 4, generator=generator)
    image_PD[:10] += 3  # what the bank lacks
    before, own_before = banks.scores(others_thwD, 0), banks.scores(image_PD[None, None], 0)
    rows_nD = banks.lacking_rows(image_PD, 0, 12)
    assert rows_nD.shape == (12, 4)
    banks.append(0, rows_nD)
    after, own_after = banks.scores(others_thwD, 0), banks.scores(image_PD[None, None], 0)
    assert len(banks.banks[0]) == 92
    assert (after <= before).all()
    assert (after < before).any()
    assert own_after[0, 0, :10].max() < 0.2 * own_before[0, 0, :10].min()


def test_an_image_that_a_bank_has_adds_nothing_and_other_features_are_refused():
    banks = bank("none")
    assert len(banks.lacking_rows(banks.banks[0][:20], 0, 128)) == 0
    assert len(banks.lacking_rows(torch.ones(30, 4), 0, 128)) == 1, "one patch stands for its equals"
    with pytest.raises(ValueError, match="none of 4 features"):
        banks.append(0, torch.zeros(2, 3))


def test_banks_together_stay_within_their_limit():
    settings = BankSettings(coreset="random", coreset_share=1.0, max_bank_gb=1.5e-6)
    banks = Banks(settings, 4, 1, "none")
    for name in ("set/cup", "set/saw"):
        banks.add([BankName(name, 0)], ["a"], torch.rand(1, 40, 4))
    banks.finish(lambda given: given)
    banks.append(0, torch.rand(10, 4))
    with pytest.raises(ValueError, match="max_bank_gb"):
        banks.append(1, torch.rand(10, 4))
    banks.begin(0, adding=True)
    banks.add([BankName("set/pin", 0)], ["a"], torch.rand(1, 40, 4))
    with pytest.raises(ValueError, match=r"130 patches take .* max_bank_gb"):
        banks.finish(lambda given: given)


def memory_bank() -> Method:
    torch.manual_seed(0)
    values = {"image_size": SIZE, "backbone": "resnet10t", "modality_slots": 2} | FEW_FEATURES
    teacher = MemoryBank(MemoryBankSettings.model_validate(values)).teacher.state_dict()
    return Maker(teacher).fitted(backbone="resnet10t")


def searching_beside_rd() -> Method:
    model = reconstructing()
    return WithAddedClasses(model, [bank_of(model, TRAIN[:2])])


@pytest.mark.parametrize(
    ("build", "class_name"),
    [
        (partial(level_search, whole_image=True), TEST[0].class_name),
        (partial(level_search, bank_per="all"), TEST[0].class_name),
        (memory_bank, TEST[0].class_name),
        (searching_beside_rd, NEW),
    ],
)
def test_no_map_of_a_class_gets_larger_and_rows_find_their_bank_again(build, class_name):
    model = build()
    grown, unseen = TEST[0], TEST[1:]

    def maps(method: Method) -> torch.Tensor:
        images_TCHW, counts, slots_T = tokens([grown, *unseen])
        return method.maps(method(images_TCHW, counts, slots_T, [class_name] * 3))

    before_BHW = maps(model)
    assert why_fixed(model, class_name) == ""
    rows = lacking_rows(model, class_name, [grown.images_MCHW], grown.slots)
    assert {place.class_name for place, _ in rows} <= {class_name, ""}
    assert why_full(model, rows) == ""
    loaded = build()
    for place, rows_nD in rows:
        append_rows(model, place, rows_nD)
        assert bank_digest(loaded, place) == bank_digest(model, place)
        for _ in range(2):
            append_rows(loaded, place, rows_nD, once=f"rows of {place}")
    after_BHW = maps(model)
    torch.testing.assert_close(maps(loaded), after_BHW)
    assert (after_BHW <= before_BHW * (1 + 1e-4) + 1e-6).all()
    assert after_BHW[0].mean() < 0.7 * before_BHW[0].mean()
    with pytest.raises(ValueError, match="has no bank of"):
        append_rows(model, rows[0][0]._replace(level=9), rows[0][1])


def test_banks_without_room_are_said_before_one_grows():
    model = searching_beside_rd()
    rows = lacking_rows(model, NEW, [TEST[0].images_MCHW], TEST[0].slots)
    level = model.added[NEW].search.banks[rows[-1][0].level]
    room = 4 * level.features * sum(map(len, level.banks)) / GB
    level.bank_settings = level.bank_settings.model_copy(update={"max_bank_gb": room})
    assert "more than the setting max_bank_gb" in why_full(model, rows)
    assert why_full(model, []) == ""


def test_the_views_of_an_image_share_what_a_bank_takes(monkeypatch):
    """Twice the same view adds nothing more than once, and several no more than one image may."""
    monkeypatch.setattr(growing, "ROWS_OF_IMAGE", 6)
    model = level_search(whole_image=True)
    one, both = (
        lacking_rows(model, TEST[0].class_name, [TEST[0].images_MCHW] * views, TEST[0].slots) for views in (1, 2)
    )
    assert [(place, len(rows_nD)) for place, rows_nD in both] == [(place, len(rows_nD)) for place, rows_nD in one]
    views = [TEST[0].images_MCHW, TEST[0].images_MCHW.flip(-1), 1 - TEST[0].images_MCHW]
    many = lacking_rows(model, TEST[0].class_name, views, TEST[0].slots)
    assert max(len(rows_nD) for _, rows_nD in many) == max(len(rows_nD) for _, rows_nD in one) == 6


def test_banks_that_cannot_grow_are_said():
    assert why_fixed(reconstructing(), NEW) == "the method has no memory bank"
    assert "discriminator" in why_fixed(level_search(drawn_on=4), TEST[0].class_name)
    model = level_search(drawn_on=4)
    with_added = WithAddedClasses(model, [bank_of(model, TRAIN[:2])])
    assert why_fixed(with_added, NEW) == "", "the model's own does not judge it"
    model.search.discriminators.of_bank = [-1] * len(model.search.discriminators.of_bank)
    assert why_fixed(model, TEST[0].class_name) == "", "nobody judges it"
    model = searching_beside_rd()
    assert why_fixed(model, NEW) == ""
    assert why_fixed(model, TEST[0].class_name) == "the method has no memory bank"
