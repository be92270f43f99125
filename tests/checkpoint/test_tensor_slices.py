"""Tensors written in parts by several ranks and read back at any other split."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimmad.checkpoint.tensor_slices import INDEX_NAME, TensorReader, TensorSlice, build_index, write_pieces

LEADERS = torch.arange(24, dtype=torch.float32).reshape(4, 2, 3)
COUNT = torch.tensor(7, dtype=torch.int64)
NAMES = ("levels.0.leaders", "batches_seen")


def write_index(folder: Path) -> None:
    (folder / INDEX_NAME).write_text(json.dumps(build_index(folder)))


def write_split(folder: Path, bounds: list[int]) -> None:
    """``LEADERS`` cut at ``bounds``, one part a rank; rank 0 has a whole scalar too."""
    ends = [*bounds, LEADERS.numel()]
    for rank, (start, end) in enumerate(zip([0, *bounds], ends, strict=True)):
        pieces = [part(LEADERS, start, end)]
        if rank == 0:
            pieces.append(TensorSlice(NAMES[1], (), 0, COUNT))
        write_pieces(folder / f"model-{rank:05d}.safetensors", pieces)
    write_index(folder)


def part(whole: Tensor, start: int, end: int, name: str = NAMES[0]) -> TensorSlice:
    return TensorSlice(name, tuple(whole.shape), start, whole.flatten()[start:end])


@pytest.mark.parametrize("bounds", [[], [6], [12, 18], [1, 2, 23]], ids=str)
def test_any_split_reads_back_whole_and_by_any_range(tmp_path, bounds):
    write_split(tmp_path, bounds)
    reader = TensorReader(tmp_path)
    assert reader.shape(NAMES[0]) == (4, 2, 3)
    assert torch.equal(reader.read(NAMES[0]), LEADERS)
    for offset in range(LEADERS.numel()):
        for numel in range(1, LEADERS.numel() - offset + 1):
            expected = LEADERS.flatten()[offset : offset + numel]
            target = torch.empty_like(expected)
            reader.read_into(target, NAMES[0], offset)
            assert torch.equal(target, expected)


def test_a_range_is_filled_in_over_pieces_in_the_targets_own_type(tmp_path):
    write_split(tmp_path, [6, 12, 18])
    target = torch.full((20,), -1.0, dtype=torch.float64)
    TensorReader(tmp_path).read_into(target[1:-1], NAMES[0], 4)
    assert target.tolist() == [-1.0, *range(4, 22), -1.0]


def test_of_a_large_tensor_only_the_part_that_is_asked_for_is_read(tmp_path):
    """What is mapped costs a page fault where it is read; safetensors might read all of it one day."""
    pages = 10_000
    values = torch.ones(4, pages * resource.getpagesize() // 16)
    write_pieces(tmp_path / "model-00000.safetensors", [TensorSlice("large", tuple(values.shape), 0, values)])
    write_index(tmp_path)
    reader, target = TensorReader(tmp_path), torch.empty(1000)
    reader.read_into(target, "large", 0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    reader.read_into(target, "large", values.numel() // 2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert torch.equal(target, torch.ones(1000))
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    assert faults < pages / 100


def test_a_scalar_keeps_its_shape_and_type(tmp_path):
    write_split(tmp_path, [12])
    count = TensorReader(tmp_path).read(NAMES[1])
    assert (count.shape, count.dtype, count.item()) == (torch.Size([]), torch.int64, 7)


def test_names_are_listed_by_prefix(tmp_path):
    write_split(tmp_path, [6])
    reader = TensorReader(tmp_path)
    assert sorted(reader.names()) == sorted(NAMES)
    assert reader.names("levels.") == [NAMES[0]]


def test_views_of_one_storage_are_written_with_their_own_values(tmp_path):
    store = torch.arange(6, dtype=torch.float32)
    transposed = store.reshape(2, 3).t()
    pieces = [
        TensorSlice("first", (3,), 0, store[:3]),
        TensorSlice("all", (6,), 0, store),
        TensorSlice("turned", (3, 2), 0, transposed),
    ]
    write_pieces(tmp_path / "model-00000.safetensors", pieces)
    write_index(tmp_path)
    reader = TensorReader(tmp_path)
    assert torch.equal(reader.read("first"), store[:3])
    assert torch.equal(reader.read("all"), store)
    assert torch.equal(reader.read("turned"), transposed)


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 6), (12, 24)],
        [(6, 24)],
        [(0, 18)],
        [(0, 18), (12, 24)],
        [(0, 24), (0, 24)],
    ],
    ids=["gap", "no start", "no end", "overlap", "twice"],
)
def test_pieces_that_do_not_make_up_the_tensor_are_refused(tmp_path, spans):
    for rank, (start, end) in enumerate(spans):
        write_pieces(tmp_path / f"model-{rank:05d}.safetensors", [part(LEADERS, start, end)])
    with pytest.raises(ValueError, match=r"pieces of levels\.0\.leaders .* \[4, 2, 3\]"):
        build_index(tmp_path)


def test_a_name_that_is_not_there_is_named(tmp_path):
    write_split(tmp_path, [])
    with pytest.raises(ValueError, match=r"no tensor levels\.9\.leaders: it is of another model"):
        TensorReader(tmp_path).read("levels.9.leaders")


def test_files_of_tensors_that_are_not_wanted_need_not_be_there(tmp_path):
    write_pieces(tmp_path / "model-00000.safetensors", [TensorSlice("x", (2,), 0, torch.ones(2))])
    write_pieces(
        tmp_path / "optimizer-00000.safetensors", [TensorSlice("optimizer/exp_avg/x", (2,), 0, torch.zeros(2))]
    )
    (tmp_path / "index.json").write_text(json.dumps(build_index(tmp_path)))
    (tmp_path / "optimizer-00000.safetensors").unlink()
    assert TensorReader(tmp_path, without="optimizer/").read("x").tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"lacks optimizer-00000\.safetensors: it is not whole"):
        TensorReader(tmp_path)


def test_a_missing_file_is_named_before_anything_is_read(tmp_path):
    write_split(tmp_path, [12])
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00001\.safetensors: it is not whole"):
        TensorReader(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 40, -8])
def test_a_file_cut_short_is_named(tmp_path, left):
    write_split(tmp_path, [12])
    path = tmp_path / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    reader, target = TensorReader(tmp_path), torch.empty(12)
    reader.read_into(target, NAMES[0], 0)
    assert torch.equal(target, LEADERS.flatten()[:12])
    with pytest.raises(ValueError, match=r"model-00001\.safetensors is damaged"):
        reader.read(NAMES[0])


def test_a_file_of_another_save_is_refused(tmp_path):
    write_split(tmp_path, [12])
    write_pieces(tmp_path / "model-00001.safetensors", [part(LEADERS, 12, 18)])
    with pytest.raises(ValueError, match=r"model-00001\.safetensors is damaged"):
        TensorReader(tmp_path).read(NAMES[0])


@pytest.mark.parametrize(
    "text",
    [b"", b'{"levels.0.leaders": {"sha', b"[]", b'{"levels.0.leaders": {"shape": [1]}}', b'{"a": 3}', b"\xff\xfe"],
)
def test_a_damaged_index_is_refused(tmp_path, text):
    write_split(tmp_path, [])
    (tmp_path / INDEX_NAME).write_bytes(text)
    with pytest.raises(ValueError, match=r"index\.json: (it is not whole|.*; use another checkpoint)"):
        TensorReader(tmp_path)


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no readable index\.json"):
        TensorReader(tmp_path)


def changed(tensors, name, **changes):
    tensors[name]["pieces"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: changed(tensors, "a", key="b"), "a piece of a is called 'b'"),
        (lambda tensors: changed(tensors, "a", offset=2**63), r"a\.pieces\.0\.offset: Input should be less than"),
        (lambda tensors: changed(tensors, "a", offset="0"), r"a\.pieces\.0\.offset: Input should be a valid integer"),
        (lambda tensors: changed(tensors, "a", numel=True), r"a\.pieces\.0\.numel: Input should be a valid integer"),
        (lambda tensors: changed(tensors, "a", file="../model-00000.safetensors"), r"file: String should match"),
        (lambda tensors: changed(tensors, "a", file="/tmp/model-00000.safetensors"), r"file: String should match"),
        (lambda tensors: tensors["a"].update(pieces=[]), "the pieces of a do not make up its shape"),
        (lambda tensors: tensors["a"].update(shape=[2**40, 2**40]), "the pieces of a|a piece of a"),
        (lambda tensors: tensors["a"].update(shape={"x": 1}), r"a\.shape: Input should be a valid list"),
    ],
)
def test_an_index_that_would_read_something_else_is_refused(tmp_path, change, says):
    """Two tensors of one shape: only their names tell them apart."""
    pieces = [TensorSlice("a", (2,), 0, torch.ones(2)), TensorSlice("b", (2,), 0, torch.zeros(2))]
    write_pieces(tmp_path / "model-00000.safetensors", pieces)
    tensors = build_index(tmp_path)
    change(tensors)
    (tmp_path / INDEX_NAME).write_text(json.dumps(tensors))
    with pytest.raises(ValueError, match=says):
        TensorReader(tmp_path)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (LEADERS.to(torch.float16), r"model-00000\.safetensors is damaged: levels\.0\.leaders is F16, not F32"),
        (LEADERS.to(torch.int32), r"levels\.0\.leaders is I32, not F32"),
        (
            LEADERS.reshape(2, 4, 3),
            r"levels\.0\.leaders has the shape \[2, 4, 3\], and the index says 24",
        ),
    ],
    ids=["half", "integers", "another shape"],
)
def test_a_tensor_whose_type_or_shape_was_changed_is_refused(tmp_path, stored, says):
    file = tmp_path / "model-00000.safetensors"
    write_pieces(file, [TensorSlice(NAMES[0], tuple(LEADERS.shape), 0, LEADERS)])
    write_index(tmp_path)
    wanted = {NAMES[0]: torch.empty(LEADERS.shape, device="meta")}
    TensorReader(tmp_path).check_fits(wanted)
    write_pieces(file, [TensorSlice(NAMES[0], tuple(stored.shape), 0, stored)])
    with pytest.raises(ValueError, match=says):
        TensorReader(tmp_path).check_fits(wanted)
