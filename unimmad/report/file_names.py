"""Names of datasets, classes and modalities as names of files: any text may be one of them."""

from __future__ import annotations

import hashlib
import re

_MOST_LETTERS = 120


def file_name(*names: str) -> str:
    """``names`` joined by hyphens, such as ``DATASET-CLASS``, and different for different names.

    Where letters that a file system may refuse had to be replaced, or other names would be joined to the same text, a
    checksum of the names follows behind a ``~``.
    """
    joined = "-".join(names)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", joined).lstrip(".")[:_MOST_LETTERS]
    if plain and plain == joined and not any("-" in name for name in names[:-1]):
        return plain
    checksum = hashlib.sha256("\0".join(names).encode()).hexdigest()[:10]
    return f"{plain}~{checksum}"
