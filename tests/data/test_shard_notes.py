"""Notes of finished shards: used again for the same inputs and for no others."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from unimmad.data.index import DatasetEntry, Modality, ShardEntry
from unimmad.data.packing import Work, pack
from unimmad.data.shard_notes import ShardNotes, sha256_of
from unimmad.data.source import SourceFile, SourceSample, SourceSet


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
    notes.add(shard, [], work)
    return notes, tmp_path / "image", tmp_path / "other"


def found(notes: ShardNotes, work: list[Work]) -> bool:
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
    notes.add(ShardEntry(name="train-0.tar", bytes=0, sha256="0" * 64, samples=1), [], work)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be read"):
        pack(work[0])
