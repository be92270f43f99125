"""Classes added to any method with a frozen teacher: their maps, and that all others keep theirs."""

import pytest
import torch
from methods.test_level_search import TEST, TRAIN, WITH_ALL, fitted, grown, short_training  # noqa: F401 (a fixture)
from methods.test_memory_bank import SIZE, Sample, tokens

from unimmad.methods.added_class import AddedBank, WithAddedClasses, empty_bank
from unimmad.methods.level_maps import harmonic_mean
from unimmad.methods.rd import RD, RDSettings
from unimmad.model.method import Method

NEW = "set/new"


def reconstructing() -> Method:
    torch.manual_seed(0)
    return RD(RDSettings.model_validate({"image_size": SIZE, "backbone": "resnet10t", "modality_slots": 2})).eval()


def bank_of(model: Method, samples: list[Sample]) -> AddedBank:
    bank = empty_bank(model, NEW)
    bank.begin()
    for one in samples:
        bank.add(model, one.images_MCHW, one.slots, one.key)
    bank.finish()
    return bank


@pytest.mark.parametrize("build", [fitted, reconstructing])
def test_samples_of_other_classes_keep_their_maps_and_added_ones_do_not_depend_on_the_batch(build) -> None:
    model = build()
    known = [each.class_name for each in TEST]
    images_TCHW, counts, slots_T = tokens(TEST)
    by_class = {"classes": [known[0], None, known[2]]} if build is fitted else {}
    expected_BHW = model.maps(model(images_TCHW, counts, slots_T, **by_class))
    added = WithAddedClasses(model, [bank_of(model, TRAIN[:2])])
    classes = [known[0], NEW, known[2]]
    output = added(images_TCHW, counts, slots_T, classes)
    maps_BHW, parts_THW = added.maps(output), added.parts(output)
    torch.testing.assert_close(maps_BHW[[0, 2]], expected_BHW[[0, 2]])
    alone = tokens([TEST[1]])
    torch.testing.assert_close(added.maps(added(*alone, [NEW]))[0], maps_BHW[1])
    for map_HW, parts_MHW in zip(maps_BHW, parts_THW.split(counts), strict=True):
        torch.testing.assert_close(parts_MHW.sum(0), map_HW, msg="parts add up to the map")


def test_an_image_that_is_left_out_is_scored_by_the_others() -> None:
    model = reconstructing()
    samples = [each for each in TRAIN if each.slots == TRAIN[0].slots][:3]
    bank, without = bank_of(model, samples), bank_of(model, samples[1:])
    features = model.teacher_levels(samples[0].images_MCHW)
    own = model.own_levels(samples[0].images_MCHW, (len(samples[0].slots),), torch.tensor(samples[0].slots))
    assert features is not None
    inside = bank.token_maps(model, features, own, list(samples[0].slots))
    with bank.leave_out(samples[0].key):
        outside = bank.token_maps(model, features, own, list(samples[0].slots))
    assert outside.mean() > 1.5 * inside.mean()
    for search, other, map_TChw in zip(bank.search.banks, without.search.banks, features, strict=True):
        kept = torch.isin(search.owners[0], other.owners[0])
        rows = search.banks[0][kept] * search.deviations[0]
        torch.testing.assert_close(rows, other.banks[0] * other.deviations[0], msg=str(map_TChw.shape))
    with pytest.raises(RuntimeError, match="stopped"), bank.leave_out(samples[0].key):
        raise RuntimeError("stopped")
    assert torch.equal(bank.token_maps(model, features, own, list(samples[0].slots)), inside), "none is left out"


def test_an_added_class_has_the_methods_levels_and_no_discriminator() -> None:
    model = grown(TRAIN[1::2], TRAIN[::2], **WITH_ALL)
    bank = bank_of(model, TRAIN[:2])
    images_TCHW, counts, slots_T = tokens([TEST[0]])
    features, own, slots = model.teacher_levels(images_TCHW), model.own_levels(images_TCHW, counts, slots_T), [0, 1]
    ratios, logits = bank.search.ratios(features, [NEW, NEW], slots)
    assert (len(ratios), logits) == (len(features) + 1, None), "the whole image"
    found_THW = bank.token_maps(model, features, own, slots)
    torch.testing.assert_close(found_THW, harmonic_mean(ratios, SIZE))
    banks, tensors = bank.search.describe()["banks"], bank.state_dict()
    kept = AddedBank.of(model, NEW, banks, tensors)
    torch.testing.assert_close(kept.token_maps(model, features, own, slots), found_THW)
    older = {name: tensor for name, tensor in tensors.items() if "whole" not in name}
    alone = AddedBank.of(model, NEW, banks, older)
    torch.testing.assert_close(alone.token_maps(model, features, own, slots), harmonic_mean(ratios[:-1], SIZE))
