"""Notes of finished shards: used again for the same inputs and for no others."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from data.every_layout import COPIES, choices, make_copy

from unimmad.data.index import DatasetEntry, Modality, ShardEntry
from unimmad.data.layouts import find_sets
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.writing.packing import Work, pack
from unimmad.data.writing.shard_notes import FinishedShard, ShardNotes, sha256_of


def convert(path: Path, others: tuple[Path, ...], bound: float) -> bytes:
    return path.read_bytes() * int(bound)


def work_of(path: Path, other: Path, bound: float = 2.0) -> list[Work]:
    entry = DatasetEntry(field="industry", modalities=(Modality(name="depth", slot=0, kind="depth"),))
    file = SourceFile(str(path), ".npy", partial(convert, path, (other,), bound))
    sample = SourceSample("a", "x", "train", "good", {"depth": file}, None)
    return [(SourceSet("s", "made here", entry, (sample,)), sample)]


@pytest.fixture
def noted(tmp_path: Path) -> tuple[ShardNotes, Path, Path]:
    for name in ("image", "other", "train-0.tar"):
        (tmp_path / name).write_bytes(b"data")
    (tmp_path / "notes").mkdir()
    notes = ShardNotes(tmp_path / "notes", tmp_path, 100)
    work = work_of(tmp_path / "image", tmp_path / "other")
    shard = ShardEntry(name="train-0.tar", bytes=4, sha256=sha256_of(tmp_path / "train-0.tar"), samples=1)
    notes.look_at(work)
    notes.add(FinishedShard(shard=shard, samples=(), facts=(), looks=(), notes=()), work)
    return notes, tmp_path / "image", tmp_path / "other"


def found(notes: ShardNotes, work: list[Work]) -> bool:
    notes.look_at(work)
    return notes.finished("train-0.tar", work) is not None


def test_the_same_is_used_again(noted: tuple[ShardNotes, Path, Path]) -> None:
    notes, image, other = noted
    assert found(notes, work_of(image, other))


def test_another_conversion_or_another_file_it_reads_is_not(noted: tuple[ShardNotes, Path, Path]) -> None:
    notes, image, other = noted
    assert not found(notes, work_of(image, other, bound=3.0))
    other.write_bytes(b"longer data")
    assert not found(notes, work_of(image, other))


def test_another_description_or_cut_is_not(noted: tuple[ShardNotes, Path, Path]) -> None:
    notes, image, other = noted
    (source, sample), *_ = work_of(image, other)
    assert not found(notes, [(replace(source, name="t"), sample)])
    assert not found(notes, [(source, replace(sample, class_name="y"))])
    assert not found(ShardNotes(notes.notes, notes.shards, 200), [(source, sample)])


def test_what_is_drawn_is_never_noted(tmp_path: Path) -> None:
    work: Any = work_of(tmp_path / "nowhere", tmp_path / "nowhere")
    notes = ShardNotes(tmp_path, tmp_path, 100)
    notes.look_at(work)
    shard = ShardEntry(name="train-0.tar", bytes=0, sha256="0" * 64, samples=1)
    notes.add(FinishedShard(shard=shard, samples=(), facts=(), looks=(), notes=()), work)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be read"):
        pack(work[0])


@pytest.mark.parametrize("layout", COPIES)
def test_every_file_that_a_sample_is_made_of_is_watched(layout: str, tmp_path: Path) -> None:
    """Whatever file a sample cannot be written without, another state of it is another shard."""
    sets = [found.source for found in find_sets(make_copy(layout, tmp_path / "sources"), modalities=choices(layout))]
    files = [path for path in (tmp_path / "sources").rglob("*") if path.is_file()]
    for folder in ("notes", "tars"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tars" / "train-0.tar").write_bytes(b"data")
    shard = ShardEntry(name="train-0.tar", bytes=4, sha256=sha256_of(tmp_path / "tars" / "train-0.tar"), samples=1)
    notes = ShardNotes(tmp_path / "notes", tmp_path / "tars", 100)
    for source in sets:
        one_of_each = {(sample.split, sample.defect): (source, sample) for sample in source.samples}
        for work in one_of_each.values():
            notes.look_at([work])
            notes.add(FinishedShard(shard=shard, samples=(), facts=(), looks=(), notes=()), [work])
            needed = [path for path in files if _is_needed(path, work)]
            assert len(needed) >= len(work[1].images) + (work[1].mask is not None)
            for path in needed:
                _check_watched(path, notes, [work])


def _is_needed(path: Path, work: Work) -> bool:
    away = path.with_name(".away")
    path.rename(away)
    try:
        pack(work)
    except (ValueError, OSError):
        return True
    finally:
        away.rename(path)
    return False


def _check_watched(path: Path, notes: ShardNotes, work: list[Work]) -> None:
    before = path.stat().st_mtime_ns
    assert found(notes, work)
    os.utime(path, ns=(1, 1))
    assert not found(notes, work), f"{path} is not watched"
    os.utime(path, ns=(before, before))
