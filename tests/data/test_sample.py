from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unimmad.data.sample import Batch, BatchBuffer, Sample, collate

SLOTS = ((1,), (0, 1, 3), (0, 2))


def sample(key: str, slots: tuple[int, ...], size: int = 4) -> Sample:
    images_MCHW = torch.randn(len(slots), 3, size, size, generator=torch.Generator().manual_seed(len(slots)))
    mask_HW = torch.zeros(size, size, dtype=torch.bool)
    mask_HW[0, 0] = key == "b"
    return Sample(
        key=key,
        dataset="set",
        class_name="set/class",
        defect="hole" if key == "b" else "good",
        anomalous=key == "b",
        modalities=tuple(f"modality {slot}" for slot in slots),
        slots=slots,
        images_MCHW=images_MCHW,
        mask_HW=mask_HW,
    )


@pytest.fixture
def samples() -> list[Sample]:
    return [sample(key, slots) for key, slots in zip("abc", SLOTS, strict=True)]


def test_tokens_are_listed_sample_by_sample_in_slot_order(samples):
    batch = collate(samples)
    assert batch.size == 3
    assert batch.tokens_per_sample == (1, 3, 2)
    assert batch.sample_of_token_T.tolist() == [0, 1, 1, 1, 2, 2]
    assert batch.slot_of_token_T.tolist() == [1, 0, 1, 3, 0, 2]
    assert batch.sample_of_token_T.dtype == batch.slot_of_token_T.dtype == torch.int64
    expected = [image for each in samples for image in each.images_MCHW]
    assert len(batch.images_TCHW) == len(expected)
    assert all(torch.equal(image, token) for image, token in zip(expected, batch.images_TCHW, strict=True))


def test_all_that_is_known_of_a_sample_travels_with_it_but_its_images_only_once(samples):
    batch = collate(samples)
    for before, after in zip(samples, batch.samples, strict=True):
        assert after.images_MCHW.numel() == 0
        assert torch.equal(after.mask_HW, before.mask_HW)
        for name in ("key", "dataset", "class_name", "defect", "anomalous", "modalities", "slots"):
            assert getattr(after, name) == getattr(before, name)
    assert all(each.images_MCHW.numel() > 0 for each in samples), "collate must not change its input"


def test_all_that_a_gpu_gets_is_page_locked(samples, monkeypatch):
    """Without a GPU there is no such memory: twice the values stand for it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: 2 * tensor)
    batch = collate(samples)
    pinned = batch.pin_memory()
    assert pinned.samples is batch.samples
    for name in ("images_TCHW", "sample_of_token_T", "slot_of_token_T"):
        assert torch.equal(getattr(pinned, name), 2 * getattr(batch, name))


def test_a_batch_of_one(samples):
    batch = collate(samples[:1])
    assert batch.images_TCHW.shape == (1, 3, 4, 4)
    assert batch.sample_of_token_T.tolist() == [0]


def test_moving_a_batch_moves_its_token_tensors_only(samples):
    moved = collate(samples).to("meta")
    assert isinstance(moved, Batch)
    assert {moved.images_TCHW.device.type, moved.sample_of_token_T.device.type, moved.slot_of_token_T.device.type} == {
        "meta"
    }
    assert {each.mask_HW.device.type for each in moved.samples} == {"cpu"}
    assert moved.tokens_per_sample == (1, 3, 2)


def put(buffer: BatchBuffer, samples: list[Sample]) -> list[Sample]:
    """The same samples, their images in ``buffer``."""
    return [replace(each, images_MCHW=buffer.take(len(each.slots)).copy_(each.images_MCHW)) for each in samples]


def test_images_that_lie_in_one_room_are_joined_without_a_copy(samples):
    there = put(BatchBuffer(6, 4), samples)
    batch = collate(there)
    assert torch.equal(batch.images_TCHW, collate(samples).images_TCHW)
    assert batch.images_TCHW.data_ptr() == there[0].images_MCHW.data_ptr()


@pytest.mark.parametrize("order", [(0, 2), (1, 0, 2), (1, 2, 0)])
def test_images_that_do_not_follow_each_other_are_joined_all_the_same(samples, order):
    """As where one that was read could not be used."""
    there = put(BatchBuffer(6, 4), samples)
    batch = collate([there[number] for number in order])
    assert torch.equal(batch.images_TCHW, collate([samples[number] for number in order]).images_TCHW)


def test_a_room_that_is_full_makes_new_memory(samples):
    there = put(BatchBuffer(3, 4), samples)
    assert torch.equal(collate(there).images_TCHW, collate(samples).images_TCHW)
    assert torch.equal(collate(put(BatchBuffer(0, 4), samples)).images_TCHW, collate(samples).images_TCHW)
