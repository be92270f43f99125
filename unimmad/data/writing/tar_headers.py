"""A shard's tar headers, walked before ``tarfile`` interprets them.

``tarfile`` unpacks what is compressed, follows chains of extended headers by recursion, takes time that grows with the
square of their length, and expands sparse files. A shard needs none of that: its members are plain files, and an
extended header holds no more than a long name.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

MAX_EXTENDED_BYTES = 2**13
"""Of one extended header: two of the longest paths that Linux knows."""
HEADERS_A_MEMBER = 2
"""Its own, and one extended header."""

_OTHER_SIZE = re.compile(rb"\d (size|GNU\.sparse\.[^=]*)=")
"""Entries of an extended header by which a member's size is not what its own header says."""
_EXTENDED = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Whether a tar's block of 512 bytes announces a member of this name and size, as far as its fields hold the name.

    As ``tarfile`` writes it: 100 letters of ASCII, the whole name in an extended header where that is too little.
    """
    stored = block[:100].rstrip(b"\0")
    try:
        return stored == name.encode("ascii", "replace")[:100] and int(block[124:135], 8) == size
    except ValueError:
        return False


def header_problems(path: Path, members: int) -> Iterator[str]:
    """The first thing that keeps ``tarfile`` from being let near a shard; nothing where all is well.

    Args:
        path: the tar.
        members: how many it is known to have; of more than twice as many no more are looked at.
    """
    most = 2 * HEADERS_A_MEMBER * members + HEADERS_A_MEMBER
    size, position, extended = path.stat().st_size, 0, False
    with path.open("rb") as stream:
        for _ in range(most):
            stream.seek(position)
            block = stream.read(tarfile.BLOCKSIZE)
            if not block.strip(b"\0"):
                return
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                yield f"cannot be read as a tar file (byte {position}: {error})"
                return
            name = f"the member {header.name}" if header.type in _PLAIN else f"{header.name} (byte {position})"
            if header.type not in (*_PLAIN, *_EXTENDED):
                yield f"holds {name}, not a plain file (type {header.type!r}): a link, device, folder or sparse"
                return
            if header.size < 0 or position + tarfile.BLOCKSIZE + header.size > size:
                yield f"cannot be read as a tar file: {name} is said to have {header.size} bytes"
                return
            if header.type in _EXTENDED and (extended or header.size > MAX_EXTENDED_BYTES):
                yield f"holds {name}, an extended header of {header.size} bytes (at most {MAX_EXTENDED_BYTES}), or two"
                return
            extended = header.type in _EXTENDED
            if extended and _OTHER_SIZE.search(stream.read(header.size)):
                yield f"holds {name}, an extended header that changes the size of a member"
                return
            position += tarfile.BLOCKSIZE + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    yield f"holds more than twice the {members} members that the index lists"
