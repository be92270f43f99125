"""Text for messages: names and values of any origin, of bounded length, with nothing that steers a terminal."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence

MAX_SHOWN = 100
_NO_UTF8 = re.compile("[\ud800-\udfff]")
"""Lone surrogates, of which the lower byte of the upper ones is the name's own (PEP 383)."""
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 3, MAX_SHOWN, MAX_SHOWN, MAX_SHOWN


def shown(value: object) -> str:
    """A value for messages: its ``repr``, at most ``MAX_SHOWN`` characters, of nested values only the outer ones."""
    return short(_SHOWN.repr(value))


def short(text: str, limit: int = MAX_SHOWN) -> str:
    """A text for messages, cut to ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """``text`` with what would steer a terminal, break a line or is not UTF-8 escaped: names may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: object, limit: int = 800) -> str:
    """For messages that hold a file's words: printable, and cut to ``limit`` characters."""
    return short(printable(str(text)), limit)


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, with commas; of many only the first ``most``, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class ListedError(ValueError):
    """Several things that are wrong: a message of several printable lines, where other errors have one."""


def error_lines(error: Exception, limit: int = 800) -> str:
    """What to print of an error: one line of at most ``limit`` characters, or those of a :class:`ListedError`."""
    if isinstance(error, ListedError):
        return "\n".join(short(line, limit) for line in str(error).split("\n"))
    return one_line(error, limit)


def itemised(title: str, items: Sequence[str], most: int = 20) -> str:
    """A title and one line for each item; of many only the first ``most``, and how many more there are."""
    lines = [f"  {printable(item)}" for item in items[:most]]
    more = [f"  and {len(items) - most} more"] if len(items) > most else []
    return "\n".join((f"{title}:", *lines, *more))


def utf8_name(name: str) -> str:
    """A name with each byte that is not UTF-8 as ``\\xNN``: Python has them as letters that no text file takes."""
    return _NO_UTF8.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)
