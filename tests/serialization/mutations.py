"""Damaged and altered JSON for hypothesis: a document with some of its nodes dropped, replaced, retyped or nested."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", "\u202e", "x" * 5000),
    *("reference://{}::https://host/x", "pipe:touch x{}", "file:///x", "hf-hub:a/b", "1", "nan", "true", "{}"),
    *([], {}, [[]], [None], {"": None}, [0] * 100),
)


def nodes(value: Any, path: Path = ()) -> Iterator[Path]:
    """The way to every node, the root's first."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from nodes(inner, (*path, key))


def get(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _retyped(value: Any) -> Any:
    if isinstance(value, str):
        return list(value)
    if isinstance(value, list):
        return {str(number): inner for number, inner in enumerate(value)}
    if isinstance(value, dict):
        return list(value.items())
    return str(value)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one node changed."""
    path = draw(st.sampled_from(list(nodes(document))))
    kind = draw(st.sampled_from(("drop", "replace", "replace", "retype", "nest", "repeat", "rename", "swap")))
    value = get(document, path)
    if kind == "swap":
        new = copy.deepcopy(get(document, draw(st.sampled_from(list(nodes(document))))))
    elif kind == "retype":
        new = _retyped(value)
    elif kind == "nest":
        new = draw(st.sampled_from(([value], {"x": value}, [[[value]]], [value, value])))
    else:
        new = draw(st.sampled_from(HOSTILE))
    if not path:
        return new
    document = copy.deepcopy(document)
    holder, key = get(document, path[:-1]), path[-1]
    if kind == "drop":
        del holder[key]
    elif kind == "repeat" and isinstance(holder, list):
        holder.append(holder[key])
    elif kind in ("repeat", "rename") and isinstance(holder, dict):
        holder[draw(st.sampled_from([text for text in HOSTILE if isinstance(text, str)]))] = holder[key]
        if kind == "rename":
            del holder[key]
    else:
        holder[key] = new
    return document


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> bytes:
    """The bytes of the document after one to three changes; some are cut short, altered, or nested without end."""
    for _ in range(draw(st.integers(1, 3))):
        document = draw(changed(document))
    data = bytearray(json.dumps(document).encode())
    harm = draw(st.sampled_from(("none", "none", "none", "none", "cut", "byte", "deep")))
    if harm == "cut":
        return bytes(data[: draw(st.integers(0, len(data)))])
    if harm == "deep":
        place = draw(st.integers(0, len(data)))
        return draw(st.sampled_from((bytes(data[:place]) + b"[" * 10_000, b'{"x":' * 3000 + b"1" + b"}" * 3000)))
    if harm == "byte" and data:
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)
