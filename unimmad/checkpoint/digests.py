"""digests.json: the SHA-256 of each file of a checkpoint, by which damage and changes show before anything is used.

Each rank takes the digests of the files that it wrote; ``state.json`` and ``index.json`` have theirs, too. Against
somebody who writes a new ``digests.json`` they do not help. ``thresholds.json``, which calibration adds later, holds
its own (``checkpoint/thresholds.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from unimmad.checkpoint.folder import STATE_NAME
from unimmad.checkpoint.tensor_slices import INDEX_NAME, TensorReader
from unimmad.serialization.documents import read_json
from unimmad.serialization.validation import validated

logger = logging.getLogger(__name__)

DIGESTS_NAME = "digests.json"
THREADS = 8
"""Files that a process hashes at the same time."""
_REMEDY = "use another checkpoint of the run; --no-verify (in Python: verify=False) loads it all the same"


class _Digests(TypedDict):
    """What digests.json holds."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    """By file name."""


_SCHEMA: TypeAdapter[_Digests] = TypeAdapter(_Digests)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path, of_tensors: Mapping[str, str]) -> None:
    """Complete a hidden checkpoint folder: the digests of its tensor files, and of the JSON files that are there.

    Raises:
        OSError: the disk is full or can't be written.
    """
    digests = {**of_tensors, **{name: file_digest(folder / name) for name in (INDEX_NAME, STATE_NAME)}}
    (folder / DIGESTS_NAME).write_text(json.dumps({"sha256": digests}, indent=2) + "\n", encoding="utf-8")


def verify_checkpoint(folder: Path, without: str | None = None, part: tuple[int, int] = (0, 1)) -> None:
    """Hold a checkpoint's files against its digests; one that has none passes with a warning.

    Args:
        folder: of the checkpoint.
        without: files that hold nothing but tensors whose names begin so are not read.
        part: rank and number of ranks, where these share the tensor files, the largest first; each rank reads the JSON.

    Raises:
        ValueError: a file has another digest, or none; names it. Or the index is damaged, or lists a missing file.
    """
    digests = known_digests(folder)
    if digests is None:
        if part[0] == 0:
            logger.warning(
                "%s has no %s, as checkpoints of older versions: it is loaded unverified", folder, DIGESTS_NAME
            )
        return
    _check(folder, [STATE_NAME, INDEX_NAME], digests)
    files = sorted(TensorReader(folder, without).files, key=lambda name: (-(folder / name).stat().st_size, name))
    rank, size = part
    _check(folder, files[rank::size], digests)


def known_digests(folder: Path) -> Mapping[str, str] | None:
    """SHA-256 of a checkpoint's files as they were saved, by name; None where it holds none.

    Raises:
        ValueError: they can't be read.
    """
    path = folder / DIGESTS_NAME
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise ValueError(f"{path} can't be read; {_REMEDY}") from None
    return validated(_SCHEMA, values, str(path), _REMEDY)["sha256"]


def _check(folder: Path, names: Sequence[str], digests: Mapping[str, str]) -> None:
    for name in names:
        if name not in digests:
            raise ValueError(f"{folder / DIGESTS_NAME} has no digest of {name}; {_REMEDY}")
    with ThreadPoolExecutor(THREADS) as pool:
        for name, found in zip(names, pool.map(lambda name: _digest_or_none(folder / name), names), strict=True):
            if found != digests[name]:
                raise ValueError(
                    f"{folder / name} is not what was saved (its SHA-256 is not that of {DIGESTS_NAME}): damaged, or "
                    f"altered; {_REMEDY}"
                )


def _digest_or_none(path: Path) -> str | None:
    """None where it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return None
