from pathlib import Path

import pytest
import yaml

from unimmad.checkpoint.folder import read_state
from unimmad.config import load_recipe, parse_recipe
from unimmad.serialization import documents
from unimmad.serialization.documents import MAX_DEPTH, parse_json, parse_yaml, read_json
from unimmad.serialization.text import shown


def aliases_of_aliases(line: str, levels: int = 9) -> str:
    """Ten times as many values at each level; ``line`` says how a level holds the one before."""
    levels_of = [line.format(i=i, ten=", ".join([f"*a{i - 1}"] * 10)) for i in range(1, levels)]
    return "\n".join(["a0: &a0 {k: v}", *levels_of, f"model: *a{levels - 1}", ""])


BOMBS = {
    "billion laughs": aliases_of_aliases("a{i}: &a{i} [{ten}]"),
    "merge keys": aliases_of_aliases("a{i}: &a{i} {{<<: [{ten}], k{i}: v}}"),
    "one long list often": f"a: &a [{', '.join('x' * 1000)}]\nmodel: [{', '.join(['*a'] * 1000)}]\n",
    "a list of lists": f"model: {'[' * 20_000}{']' * 20_000}",
    "a mapping of mappings": f"model: {'{a: ' * 10_000}{'}' * 10_000}",
    "a block of blocks": "\n".join(" " * depth + "a:" for depth in range(300)),
    "a list that holds itself": "model: &a [*a]",
    "a file too long": "# " + "x" * documents.MAX_YAML_BYTES,
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_yaml_bomb_is_refused_before_anything_is_built(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("values were built")

    monkeypatch.setattr(yaml, "load", built)
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[case])
    with pytest.raises(ValueError, match=r"bomb\.yaml.*(more than 16384 values|nested deeper|holds it|longer)") as told:
        load_recipe(str(file))
    assert len(str(told.value)) < 500


def test_aliases_and_merge_keys_within_the_limit_are_read() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert parse_yaml(text, "x") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "!!int ''", "!!bool x", "!!float x", "a: *b", "{[]: x}", "\0", "9" * 5000]
)
def test_a_yaml_that_its_constructors_reject_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^file\.yaml can't be read as YAML: "):
        parse_yaml(text, "file.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\nmethod: level_search\nmodel: {}\nmethod: rd\n", "'method'.*, in lines 2 and 4$"),
        ("model: {image_size: 64, image_size: 128}", "'image_size'.*, in line 1$"),
        ("model:\n  image_size: 64\n  'image_size': 64\n", "'image_size'.*, in lines 2 and 3$"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_lines(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.yaml can't be read as YAML: the key {told}"):
        load_recipe(str(file))


def test_a_key_may_come_by_a_merge_and_by_itself_and_in_several_mappings() -> None:
    text = "x: &x {k: 1}\nouter: {inner: &a {<<: *x, k: 2}}\nb: {<<: *a, k: 3}"
    assert parse_yaml(text, "x") == {"x": {"k": 1}, "outer": {"inner": {"k": 2}}, "b": {"k": 3}}


def test_no_python_object_is_made() -> None:
    with pytest.raises(ValueError, match="could not determine a constructor"):
        parse_yaml("!!python/object/apply:os.getcwd []", "x")


def test_a_value_that_does_not_fit_is_shown_in_short() -> None:
    """A shared list of lists stands for 10^8 values; a message that showed it in full would never end."""
    value: object = "x"
    for _ in range(8):
        value = [value] * 10
    with pytest.raises(ValueError, match=r"training\.seed: Input should be") as told:
        parse_recipe({"name": "x", "training": {"seed": value}}, "origin")
    assert len(str(told.value)) < 300
    assert shown(["y" * 10**6]).startswith("['yyy")
    assert len(shown(["y" * 10**6])) <= documents.MAX_SHOWN


def test_many_unknown_keys_are_not_all_told() -> None:
    with pytest.raises(ValueError, match="and 990 more") as told:
        parse_recipe({"name": "x", "model": {f"{place}{'z' * 1000}": 1 for place in range(1000)}}, "origin")
    assert len(str(told.value)) < 2500


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_json_nested_deep_is_refused(depth: int) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(ValueError, match=r"^x is nested deeper than 64 levels$"):
            parse_json(text, "x")


def test_json_as_deep_as_allowed_is_read() -> None:
    value = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    for _ in range(MAX_DEPTH - 1):
        value = value[0]
    assert value == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"\x80{}", b"[1, 2,]", b"9" * 5000])
def test_what_is_no_json_is_named(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"state\.json is not JSON \("):
        read_json(file)


def test_a_json_file_too_long_is_not_read_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_JSON_BYTES", 100)
    file = tmp_path / "state.json"
    file.write_text(" " * 101)
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        read_json(file)


def test_a_checkpoint_state_nested_deep_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 1, "recipe": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        read_state(tmp_path)
