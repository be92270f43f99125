"""Names of files reach the screen whatever its encoding."""

from __future__ import annotations

import io
import sys

import pytest

from unimmad.cli.console import print_any_name


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_the_encoding_lacks_is_escaped(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with pytest.raises(UnicodeEncodeError):
        print("a\udce9ö")
    print_any_name()
    print("a\udce9ö")
    sys.stdout.flush()
    assert raw.getvalue().decode(encoding).rstrip() == ("a\\udce9\\xf6" if encoding == "ascii" else "a\\udce9ö")
