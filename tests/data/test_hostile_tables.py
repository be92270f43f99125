"""Tables and folders that hold anything: read, or refused in one printable line of bounded length, in no time."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_sets import gray, rgb, save

from unimmad.data.index import load_index
from unimmad.data.layouts import find_set
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder

CPU_SECONDS = 2.0
HEAD = "class,split,image,defect,mask,name\n"
ROWS = "x,train,a.png,,,\nx,test,b.png,,,\nx,test,c.png,bad,,\n"
MANY = 10_000


def columns(prefix: str) -> str:
    return ",".join(f"{prefix}{number}" for number in range(MANY))


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "many columns": (f"class,split,image,{columns('c')}\nx,train,a.png,{columns('v')}\n", "10003 columns; at most 256"),
    "many modalities": (f"class,split,{columns('image.m')}\n" + f"x,train{',a.png' * MANY}\n" * 20, "10002 columns"),
    "many columns, none needed": (f"{columns('c')}\n", "no column class and split.* c19 and 9980 more"),
    "many columns of one name": (f"class,split,image{',c' * MANY}\n", "10003 columns"),
    "NUL in a path": (f"{HEAD}x,train,a\0.png,,,\n", "not UTF-8 text"),
    "UTF-16 without a mark": ((HEAD + ROWS).encode("utf-16-le"), "not UTF-8 text"),
    "UTF-16": ((HEAD + ROWS).encode("utf-16"), "not UTF-8 text"),
    "UTF-8, then Latin-1": (
        HEAD.encode() + "é,train,a.png,,,\n".encode() + "é,test,b.png,,,\n".encode("latin-1"),
        "not UTF",
    ),
    "a cell that steers a terminal": (f"{HEAD}{ROWS}x,test,a.png,\x1b[31m,,\n", r"line 5: defect holds .*\\x1b\[31m"),
    "a path that steers a terminal": (f"{HEAD}x,train,\x1b[2J.png,,,\n", r"line 2: image holds"),
    "a long split": (f"{HEAD}x,{'y' * 100_000},a.png,,,\n", "wanted train"),
    "a long path": (f"{HEAD}x,train,{'d/' * 3000}a.png,,,\n", "line 2: .*(name too long|does not exist)"),
    "a long name": (f"{HEAD}x,train,a.png,,,{'n' * 100_000}\n", "longer than 2048 bytes"),
    "a long class": (f"{HEAD}{'x' * 300},train,a.png,,,\n", "class.* longer than 255 bytes"),
    "a long defect": (f"{HEAD}{ROWS}x,test,d.png,{'n' * 300},,\n", "defect.* longer than 255 bytes"),
    "a long line": (f'{HEAD}"{"x" * 20_000_000}', "not CSV"),
    "a row twice": (HEAD + ROWS + ROWS, r"a\.png is two samples of class x \(train good and train good\)"),
    "a row twice under two names": (f"{HEAD}x,train,a.png,,,m\nx,train,./e/../a.png,,,n\n", "two samples of class x"),
    "trained on and tested": (f"{HEAD}{ROWS}x,test,a.png,,,\n", "train good and test good"),
    "normal and anomalous": (f"{HEAD}{ROWS}x,test,b.png,bad,,\n", "test good and test bad"),
    "a device": (f"{HEAD}x,train,/dev/zero,,,\n", "/dev/zero does not exist"),
    "a link to a device": (f"{HEAD}x,train,zero.png,,,\n", r"zero\.png does not exist"),
}
LINES: dict[str, tuple[str, str]] = {
    "many modalities in one object": (
        '{"class": "x", "split": "train", ' + ", ".join(f'"image.m{n}": "a.png"' for n in range(MANY)) + "}",
        "10002 columns",
    ),
    "another modality in each object": (
        "\n".join(f'{{"class": "x", "split": "train", "image.m{n}": "a.png"}}' for n in range(MANY)),
        "257 columns; at most 256",
    ),
    "NUL": ('{"class": "x\\u0000", "split": "train", "image": "a.png"}', r"class holds .*\\x00"),
    "half a letter": ('{"class": "x", "split": "test", "image": "a.png", "defect": "\\ud800"}', "defect holds"),
    "a path of half a letter": ('{"class": "x", "split": "train", "image": "\\ud800.png"}', "image holds"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        save(tmp_path / f"{name}.png", rgb(seed))
    (tmp_path / "e").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    return tmp_path


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        yield
    assert time.process_time() - started < CPU_SECONDS


def written(table: Path) -> None:
    write_shards([find_set(table).source], table.parent / "shards", progress=False)


@pytest.mark.parametrize("what", REFUSED)
def test_a_csv_is_refused_in_no_time(what: str, folder: Path) -> None:
    content, message = REFUSED[what]
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(message):
        written(path)


@pytest.mark.parametrize("what", LINES)
def test_json_lines_are_refused_in_no_time(what: str, folder: Path) -> None:
    content, message = LINES[what]
    path = folder / "table.jsonl"
    path.write_text(content)
    with refused(message):
        written(path)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_and_any_line_ends_are_read(ends: str, mark: str, folder: Path) -> None:
    (folder / "table.csv").write_bytes((mark + HEAD + ROWS).replace("\n", ends).encode())
    (folder / "table.jsonl").write_bytes(
        (
            mark
            + '{"class": "x", "split": "train", "image": "a.png"}\n{"class": "x", "split": "test", "image": "b.png"}\n'
        )
        .replace("\n", ends)
        .encode()
    )
    assert len(find_set(folder / "table.csv").source.samples) == 3
    assert len(find_set(folder / "table.jsonl").source.samples) == 2


def test_files_outside_of_the_tables_folder_are_written_and_said(folder: Path) -> None:
    (folder / "mine").mkdir()
    table = folder / "mine" / "table.csv"
    save(folder / "mine" / "b.png", rgb(9))
    table.write_text(f"class,split,image\nx,train,../a.png\nx,test,b.png\nx,test,{folder / 'c.png'}\n")
    found = find_set(table)
    assert [line for line in found.notices if "outside" in line] == [
        f"{table}: 2 of its files lie outside of {table.parent}, such as {table.parent}/../a.png"
    ]
    table.write_text(f"class,split,image\nx,train,b.png\nx,train,{folder / 'mine' / '..' / 'mine' / 'c.png'}\n")
    save(folder / "mine" / "c.png", rgb(9))
    assert not [line for line in find_set(table).notices if "outside" in line]


def test_one_image_in_two_classes_is_no_mistake(folder: Path) -> None:
    (folder / "table.csv").write_text("class,split,image\nx,train,a.png\ny,train,a.png\n")
    assert len(find_set(folder / "table.csv").source.samples) == 2


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_image_that_never_ends_is_refused(kind: str, tmp_path: Path) -> None:
    """In the middle of a class, where it is first opened when it is written."""
    good = tmp_path / "parts" / "x" / "train" / "good"
    for number in range(5):
        save(good / f"{number}.png", gray(number))
    if kind == "pipe":
        os.mkfifo(good / "9.png")
    else:
        (good / "9.png").symlink_to("/dev/zero")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, limits[1]))
    try:
        with refused(r"good/9\.png: is not a plain file"):
            written(tmp_path / "parts")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("defect", [b"b\xff", b"b\nx", b"b\x1bx"])
def test_a_defects_name_is_text(defect: bytes, tmp_path: Path) -> None:
    save(tmp_path / "parts" / "x" / "train" / "good" / "0.png", gray(0))
    save(tmp_path / "parts" / "x" / "test" / os.fsdecode(defect) / "0.png", gray(1))
    with pytest.raises(ValueError, match="cannot name a defect: it contains a control character, or is not UTF-8"):
        written(tmp_path / "parts")


def test_what_is_written_is_read_again(folder: Path) -> None:
    """Names as long as they may be, of letters of four bytes."""
    longest = "\U0001f600" * 63
    rows = f"{longest},train,a.png,,,{'n' * 900}\n{longest},test,b.png,{longest},,\n"
    (folder / "table.csv").write_text(HEAD + rows)
    written(folder / "table.csv")
    assert {sample.class_name for sample in load_index(folder / "shards").samples} == {longest}
    assert verify_folder(folder / "shards", progress=False) == []


def test_a_table_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimmad.data.layouts.own.rows.MAX_TABLE_BYTES", 1000)
    (tmp_path / "table.csv").write_bytes(b"x" * 1001)
    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        find_set(tmp_path / "table.csv")
