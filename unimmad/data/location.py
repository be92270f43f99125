"""Where a shard folder lies: a local path, or a URL.

A URL is what fsspec opens (``s3://bucket/set``, ``https://host/set``, ``file:///mnt/set``), or a command
(``pipe:aws s3 cp s3://bucket/set/{} -``) that prints a file. ``{}`` stands for the file's name; without it the name is
appended after a slash. A plain path is read in place; everything that a URL names, ``file://`` too, goes through the
shard cache.

What a file names (a checkpoint's ``state.json``) is trusted less than what a user types: fsspec's URLs can chain file
systems, fill in templates, read environment variables on the way and send them to a server.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

PLACE_OF_NAME = "{}"
PIPE = "pipe:"
RECORDED_SCHEMES = ("https", "s3", "gs", "az", "hf")
"""Of URLs that are read where a file names them; each leads to one kind of server, and nowhere else."""


@dataclass(frozen=True)
class RemoteFolder:
    """A shard folder that is not on this machine's file system."""

    url: str

    def file(self, name: str) -> str:
        """The URL of one file of the folder; in a command the name is quoted for the shell."""
        if PLACE_OF_NAME in self.url:
            return self.url.replace(PLACE_OF_NAME, shlex.quote(name) if is_command(self.url) else name)
        return f"{self.url.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return self.url


DataFolder = Path | RemoteFolder


def parse_data_folder(text: str) -> DataFolder:
    """Read what a user typed after ``--data``.

    Raises:
        ValueError: a ``pipe:`` command without ``{}``.
    """
    if is_command(text):
        if PLACE_OF_NAME not in text:
            raise ValueError(
                f"{text}: a pipe: command needs {PLACE_OF_NAME} where the file's name belongs, "
                "as in 'pipe:aws s3 cp s3://bucket/set/{} -'"
            )
        return RemoteFolder(PIPE + text[len(PIPE) :])
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)", text):
        return RemoteFolder(text)
    return Path(text)


def recorded_data_folder(text: str, origin: str) -> DataFolder:
    """Read a data folder that a file names (``origin``: which): a plain path, or a plain URL of ``RECORDED_SCHEMES``.

    Raises:
        ValueError: anything else, which counts only where a user types it: a command, another scheme, a chain of file
            systems (``::``), a template (``{}``).
    """
    if is_command(text):
        raise ValueError(
            f"{origin} names the command {text!r} as its data; commands are run only when you type them: "
            "check it, then give it with --data"
        )
    if not text or any(ord(letter) < 32 for letter in text):
        raise ValueError(f"{origin} names {text!r} as its data, which is not a folder; give the folder with --data")
    folder = parse_data_folder(text)
    if isinstance(folder, RemoteFolder) and not _is_plain_url(text):
        raise ValueError(
            f"{origin} names {text!r} as its data; from a file only paths and plain URLs of "
            f"{', '.join(RECORDED_SCHEMES)} are read: check it, then give it with --data"
        )
    return folder


def _is_plain_url(text: str) -> bool:
    scheme, _, rest = text.partition("://")
    plain = text.isascii() and text.isprintable() and not any(letter in text for letter in "{} ") and "::" not in text
    return plain and scheme.lower() in RECORDED_SCHEMES and "://" not in rest


def is_command(url: str) -> bool:
    """Whether opening it runs a command of a shell."""
    return url.lstrip()[: len(PIPE)].lower() == PIPE


def shown(url: str) -> str:
    """A URL for messages: without a password or the query, which may hold a signature."""
    if is_command(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
