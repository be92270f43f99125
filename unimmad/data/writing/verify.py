"""A shard folder held against its index, byte by byte: what ``unimmad shards verify`` prints."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unimmad.data.index import Index, Member, SampleEntry, ShardEntry, load_index
from unimmad.data.writing.shard_notes import sha256_of
from unimmad.data.writing.tar_headers import header_problems
from unimmad.serialization.documents import parse_json
from unimmad.serialization.text import printable, shown

MAX_DESCRIPTION_BYTES = 2**16
_DESCRIBED = ("key", "dataset", "class_name", "split", "defect", "anomalous")


def verify_folder(folder: Path, progress: bool = True) -> list[str]:
    """Everything that is wrong with a shard folder, one line each; reads every shard whole.

    Found are: a missing, cut or altered shard (size, sha256), one that the index does not know, a wrong count, and
    members that are not where and what the index says, or are two samples'.

    Raises:
        ValueError: the folder or its index cannot be read, or the index is at odds with itself.
    """
    index = load_index(folder)
    problems = list(_unlisted(folder, index))
    of_shard: list[list[SampleEntry]] = [[] for _ in index.shards]
    for sample in index.samples:
        of_shard[sample.shard].append(sample)
    with tqdm(
        total=sum(shard.bytes for shard in index.shards),
        desc=f"verify {folder.name}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        for shard, samples in zip(index.shards, of_shard, strict=True):
            problems += [f"{folder / shard.name}: {problem}" for problem in _readable_problems(folder, shard, samples)]
            bar.update(shard.bytes)
    return [printable(problem) for problem in problems]


def _unlisted(folder: Path, index: Index) -> Iterator[str]:
    listed = {shard.name for shard in index.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: is not in the index"


def _readable_problems(folder: Path, shard: ShardEntry, samples: Sequence[SampleEntry]) -> Iterator[str]:
    """A shard that cannot be read, or goes away meanwhile, keeps no other one from being looked at."""
    try:
        yield from _shard_problems(folder, shard, samples)
    except OSError as error:
        yield f"cannot be read ({error.strerror or error})"


def _shard_problems(folder: Path, shard: ShardEntry, samples: Sequence[SampleEntry]) -> Iterator[str]:
    path = folder / shard.name
    if not path.is_file():
        yield "is missing"
        return
    if shard.samples != len(samples):
        yield f"the index lists {len(samples)} samples in it, and counts {shard.samples}"
    size = path.stat().st_size
    if size != shard.bytes:
        yield f"has {size} bytes, the index says {shard.bytes}: it was cut short or changed"
        return
    if sha256_of(path) != shard.sha256:
        yield "its sha256 is not the index's: it was altered"
    yield from _shared_members(samples)
    expected = _expected_members(samples)
    if unfit := list(header_problems(path, len(expected))):
        yield from unfit
        return
    try:
        with tarfile.open(path, "r:") as tar:  # not what is compressed: samples are read by their place in the file
            yield from _member_problems(tar, samples, expected)
    except Exception as error:  # what is damaged makes tarfile raise a dozen unrelated types
        yield f"cannot be read as a tar file ({error})"


def _shared_members(samples: Sequence[SampleEntry]) -> Iterator[str]:
    for name, count in Counter(member.name for sample in samples for member in sample.images.values()).items():
        if count > 1:
            yield f"{name} is a member of {count} samples"


def _expected_members(samples: Sequence[SampleEntry]) -> set[str]:
    descriptions = {f"{sample.dataset}/{sample.key}.json" for sample in samples}
    masks = {sample.mask.name for sample in samples if sample.mask}
    return descriptions | masks | {member.name for sample in samples for member in sample.images.values()}


def _member_problems(tar: tarfile.TarFile, samples: Sequence[SampleEntry], expected: Collection[str]) -> Iterator[str]:
    found = {info.name: info for info in tar.getmembers()}
    for name, count in Counter(info.name for info in tar.getmembers()).items():
        if count > 1:
            yield f"holds the member {name} {count} times"
    for sample in samples:
        yield from _description_problems(tar, found.get(f"{sample.dataset}/{sample.key}.json"), sample)
        for member in (*sample.images.values(), *([sample.mask] if sample.mask else [])):
            if not _lies_there(found.get(member.name), member):
                yield f"{member.name} is not where the index says, or not as long"
    for name in sorted(found.keys() - set(expected)):
        yield f"holds {name}, which no sample of the index has"


def _lies_there(info: tarfile.TarInfo | None, member: Member) -> bool:
    return info is not None and _is_plain(info) and (info.offset_data, info.size) == (member.offset, member.length)


def _is_plain(info: tarfile.TarInfo) -> bool:
    return info.isreg() and not info.issparse()


def _description_problems(tar: tarfile.TarFile, info: tarfile.TarInfo | None, sample: SampleEntry) -> Iterator[str]:
    """Each sample's ``key.json`` says what plain WebDataset readers take for true."""
    stream = tar.extractfile(info) if info is not None and _is_plain(info) else None
    if stream is None:
        yield f"{sample.dataset}/{sample.key}.json is missing"
        return
    try:
        described: Any = parse_json(stream.read(MAX_DESCRIPTION_BYTES), "it")
    except ValueError:
        described = None
    if not isinstance(described, dict):
        yield f"{sample.dataset}/{sample.key}.json is not a JSON object"
        return
    for key in _DESCRIBED:
        if described.get(key) != getattr(sample, key):
            yield (
                f"{sample.dataset}/{sample.key}.json says {key} is {shown(described.get(key))}, "
                f"the index {getattr(sample, key)!r}"
            )
