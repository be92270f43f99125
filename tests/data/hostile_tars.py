"""Shards that would keep ``tarfile`` busy for minutes, end in a traceback, or pass for what they are not."""

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

from unimmad.data.index import INDEX_NAME, DatasetEntry, Index, Member, Modality, SampleEntry, ShardEntry

SHARD = "train-000000.tar"
IMAGE = b"x" * 100
FACTS = {"key": "k", "dataset": "d", "class_name": "c", "split": "train", "defect": "good", "anomalous": False}
DESCRIPTION = json.dumps(FACTS).encode()
END = bytes(2 * tarfile.BLOCKSIZE)


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def header_with(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that no writer makes: any size, base 256, at both places where one stands."""
    block = bytearray(header(name, kind=kind))
    number = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    block[124:136] = number
    if kind == tarfile.GNUTYPE_SPARSE:
        block[124:136] = b"%011o\0" % 0
        block[483:495] = number
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(key: str, value: str) -> bytes:
    """Of an extended header; it starts with its own length."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length += len(str(length)) > len(str(len(rest)))
    return str(length).encode() + rest


def extended(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("PaxHeader", len(body), kind) + blocks(body)


def shard(more: bytes = b"") -> bytes:
    """One sample as it should be, and ``more`` behind it."""
    description = header("d/k.json", len(DESCRIPTION)) + blocks(DESCRIPTION)
    return description + header("d/k.0.png", len(IMAGE)) + blocks(IMAGE) + more + END


def hostile() -> dict[str, tuple[bytes, str]]:
    """By what is wrong: a shard, and part of the line that says so."""
    empty = header("d/z")
    no_file = "not a plain file"
    sparse_map = entry("GNU.sparse.major", "1") + entry("GNU.sparse.minor", "0")
    return {
        "symbolic link": (shard(header("d/z", kind=tarfile.SYMTYPE, link="/etc/passwd")), no_file),
        "hard link": (shard(header("d/z", kind=tarfile.LNKTYPE, link="d/k.json")), no_file),
        "character device": (shard(header("d/z", kind=tarfile.CHRTYPE)), no_file),
        "block device": (shard(header("d/z", kind=tarfile.BLKTYPE)), no_file),
        "pipe": (shard(header("d/z", kind=tarfile.FIFOTYPE)), no_file),
        "folder": (shard(header("d", kind=tarfile.DIRTYPE)), no_file),
        "unknown type": (shard(header("d/z", kind=b"Z")), no_file),
        "sparse file": (shard(header_with("d/z", 2**60, tarfile.GNUTYPE_SPARSE)), no_file),
        "sparse description": (header_with("d/k.json", 2**60, tarfile.GNUTYPE_SPARSE) + END, no_file),
        "header for all": (shard(extended(entry("path", "d/z"), tarfile.XGLTYPE)), no_file),
        "path upwards": (shard(header("../../etc/z")), r"holds ../../etc/z, which no sample"),
        "absolute path": (shard(header("/etc/z")), "holds /etc/z, which no sample"),
        "name that is not UTF-8": (shard(header("d/\udcff")), r"holds d/\udcff, which no sample"),
        "name that steers a terminal": (shard(header("d/\x1b[2Jz")), r"holds d/\x1b[2Jz, which no sample"),
        "negative size": (shard(header_with("d/z", -1024)), "is said to have -1024 bytes"),
        "size beyond the file": (shard(header_with("d/z", 2**62)), f"is said to have {2**62} bytes"),
        "chain of extended headers": (shard(extended(entry("comment", "x")) * 5000 + empty), "or two"),
        "long extended header": (shard(extended(b"1" * 3_000_000) + empty), "of 3000000 bytes (at most 8192)"),
        "long name": (shard(extended(b"n" * 2**20, tarfile.GNUTYPE_LONGNAME) + empty), "(at most 8192)"),
        "other size": (shard(extended(entry("size", str(2**62))) + empty), "changes the size of a member"),
        "other negative size": (shard(extended(entry("size", "-1024")) + empty), "changes the size of a member"),
        "sparse map in a header": (shard(extended(entry("GNU.sparse.map", "1,x")) + empty), "changes the size"),
        "sparse map that never ends": (
            shard(extended(sparse_map) + header("d/z", 512) + blocks(b"99999\n")),
            "changes the size of a member",
        ),
        "other name": (shard()[:1024] + extended(entry("path", "d/y")) + shard()[1024:], "holds d/y, which no sample"),
        "many members": (shard(empty * 100_000), "more than twice the 2 members"),
        "gzip": (gzip.compress(shard()), "cannot be read as a tar file"),
        "gzip of much": (gzip.compress(shard(header("d/z", 2**24) + bytes(2**24))), "cannot be read as a tar file"),
        "cut": (shard()[:700], "cannot be read as a tar file"),
        "no tar": (b"\xff" * 4096, "cannot be read as a tar file"),
        "empty": (b"", "cannot be read as a tar file"),
    }


def hostile_folder(folder: Path, data: bytes) -> Path:
    """A shard folder whose index holds ``data`` for right."""
    folder.mkdir()
    (folder / SHARD).write_bytes(data)
    # Where the image lies in a shard as it should be, if this one is as long: the index itself contradicts nothing.
    length = min(len(IMAGE), len(data))
    image = Member(name="d/k.0.png", offset=min(shard().index(IMAGE), len(data) - length), length=length)
    sample = SampleEntry(**FACTS, shard=0, images={"rgb": image})  # type: ignore[arg-type]
    entry_ = ShardEntry(name=SHARD, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), samples=1)
    modality = Modality(name="rgb", slot=0, kind="rgb")
    index = Index(
        source="x", datasets={"d": DatasetEntry(field="f", modalities=(modality,))}, shards=(entry_,), samples=(sample,)
    )
    (folder / INDEX_NAME).write_text(index.model_dump_json())
    return folder
