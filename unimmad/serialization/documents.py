"""JSON and YAML of any origin: limits on size, depth and aliases before anything is built.

A parser in Python goes as deep as the text does, and a YAML of a few lines may stand for more values than any memory
holds: its aliases share them, but whoever walks through the result (a check, a merge, an error message) meets each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from unimmad.serialization.text import MAX_SHOWN, short, shown

MAX_JSON_BYTES = 2**26
"""A report of a million samples, or the index of a checkpoint of a million tensors, stays below."""
MAX_YAML_BYTES = 2**16
"""PyYAML needs a second for this much; the longest shipped recipe has 2 kB."""
MAX_DEPTH = 64
MAX_YAML_VALUES = 2**14
"""With every alias counted as what it stands for."""


def read_limited(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """A file's bytes.

    Raises:
        ValueError: it is longer than ``limit``.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is longer than {limit} bytes, the most that is read of such a file")
    return data


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: as ``parse_json``, or it is longer than ``MAX_JSON_BYTES``.
        OSError: it cannot be read.
    """
    return parse_json(read_limited(path, MAX_JSON_BYTES), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """The value that a JSON text (UTF-8) stands for.

    Raises:
        ValueError: no JSON, no UTF-8, or nested deeper than ``MAX_DEPTH``; ``where`` is named.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
        level, depth = _containers([value]), 0
        while level:
            level, depth = [inner for outer in level for inner in _containers(outer)], depth + 1
            if depth > MAX_DEPTH:
                raise RecursionError
    except RecursionError:
        raise ValueError(f"{where} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    return value


def _containers(outer: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    """Those right inside."""
    inside = outer.values() if isinstance(outer, dict) else outer
    return [inner for inner in inside if isinstance(inner, dict | list)]


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value that a YAML text (UTF-8) stands for, of plain types only.

    Raises:
        ValueError: no YAML, no UTF-8, a key twice in one mapping, longer than ``MAX_YAML_BYTES``, nested deeper than
            ``MAX_DEPTH``, or its aliases stand for more than ``MAX_YAML_VALUES`` values; ``where`` is named.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"{where} is longer than {MAX_YAML_BYTES} bytes, the most that is read of such a file")
    try:
        content = text if isinstance(text, str) else text.decode()
        _check_values(content)
        return yaml.load(content, _KeysOnce)
    except Exception as error:  # PyYAML's constructors raise a dozen unrelated types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where} can't be read as YAML: {short(reason, 4 * MAX_SHOWN)}") from None


class _KeysOnce(yaml.SafeLoader):
    """Plain types only. PyYAML itself would let the last of a key's values count, and say nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Before merge keys (``<<``) bring in keys that may be there already."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused when a mapping is made of them
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"line {line}" if lines[name] == line else f"lines {lines[name]} and {line}"
                raise ValueError(f"the key {shown(key.value)} is there twice in one mapping, in {where}")
            lines[name] = line
        return node


def _check_values(text: str) -> None:
    """Count values event by event, which builds nothing."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    """Anchor of each collection that is not yet complete, and the count when it began."""
    total = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before
            continue
        if isinstance(event, yaml.AliasEvent):
            # An unknown one is left to the composer, and so is one inside of what it stands for.
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"the alias *{shown(event.anchor)} stands for something that holds it")
            total += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if total > MAX_YAML_VALUES:
            raise ValueError(f"it stands for more than {MAX_YAML_VALUES} values, each alias (*NAME) counted in full")
        if len(open_) > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
