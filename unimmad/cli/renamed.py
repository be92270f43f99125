"""Options that got another name: the old spelling still works, and one line says the new one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence


def with_new_names(argv: Sequence[str] | None, renamed: Mapping[str, str]) -> list[str]:
    """``argv`` (None: the command line's) with the old spellings, the keys of ``renamed``, replaced."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = [word.partition("=")[0] for word in given]
    for old in dict.fromkeys(option for option in options if option in renamed):
        print(f"note: {old} is called {renamed[old]} now", file=sys.stderr)
    return [
        renamed[option] + word[len(option) :] if option in renamed else word
        for word, option in zip(given, options, strict=True)
    ]
