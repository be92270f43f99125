"""Whole files from URLs, tried again when the network fails."""

from __future__ import annotations

import http.client
import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from time import sleep
from typing import IO, Any, TypeVar

import fsspec
from webdataset.gopen import gopen_pipe

from unimmad.data.location import is_command, shown

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 6
FIRST_DELAY = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""
TIMEOUT = 60.0
"""Seconds without a byte before an attempt over http counts as failed."""
BLOCK_BYTES = 2**20

_LASTING_CODES = frozenset({400, 401, 403, 404, 405, 410})
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)


class FetchError(ValueError):
    """A file could not be had from its URL: no fault of the data."""


class _Interrupted(Exception):  # noqa: N818, it never leaves this module
    """The source failed in a way that may pass."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http or https, and from https only to https."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        target = str(rest[-1])
        if not target.lower().startswith(("https://",) if req.type == "https" else ("https://", "http://")):
            raise PermissionError(f"it redirects to {shown(target)}, which is not followed")
        return super().redirect_request(req, *rest)


_OPENER = urllib.request.build_opener(_NoDowngrade)


def fetch_blocks(url: str) -> Iterator[bytes]:
    """The file's bytes, block by block, once.

    Raises:
        FetchError: it is not there, may not be read, its server is not trusted, or it needs a package that is not
            installed.
        _Interrupted: anything else; see ``with_retries``.
    """
    try:
        with _open(url) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
            if isinstance(stream, http.client.HTTPResponse) and stream.length:
                raise http.client.IncompleteRead(b"", stream.length)
    except (*_LASTING, ImportError) as error:
        raise FetchError(f"{shown(url)}: cannot be opened ({_reason(error)})") from None
    except urllib.error.HTTPError as error:
        if error.code in _LASTING_CODES:
            raise FetchError(f"{shown(url)}: cannot be opened ({_reason(error)})") from None
        raise _Interrupted(_reason(error)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(
                f"{shown(url)}: the server is not trusted ({error.reason.verify_message}); "
                "if it is yours, name its authority's certificate in SSL_CERT_FILE"
            ) from None
        raise _Interrupted(_reason(error)) from None
    except Exception as error:  # every file system of fsspec has its own
        raise _Interrupted("the command failed" if is_command(url) else _reason(error)) from None


def with_retries(url: str, attempt: Callable[[], T]) -> T:
    """Call ``attempt``, which reads ``url``, until it succeeds: ``ATTEMPTS`` times, waiting 1, 2, 4, ... seconds.

    Raises:
        FetchError: a failure that will last, or the last attempt's.
    """
    delay = FIRST_DELAY
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _Interrupted as problem:
            if number == ATTEMPTS:
                raise FetchError(f"{shown(url)}: cannot be read after {ATTEMPTS} attempts ({problem})") from None
            logger.warning("%s: %s; attempt %d of %d in %g s", shown(url), problem, number + 1, ATTEMPTS, delay)
            sleep(delay)
            delay *= 2
    raise AssertionError("the last attempt returns or raises")


def fetch(url: str, max_bytes: int) -> bytes:
    """A small file whole.

    Raises:
        FetchError: it cannot be had.
        ValueError: it is larger than ``max_bytes``.
    """
    return with_retries(url, lambda: _joined(url, max_bytes))


def check_whole(url: str, fits: bool) -> None:
    """Have ``with_retries`` try again where what came is not what was announced: most often a broken connection."""
    if not fits:
        raise _Interrupted(f"{shown(url)} is not the file that the index describes: cut short, or altered")


def _joined(url: str, max_bytes: int) -> bytes:
    data = bytearray()
    for block in fetch_blocks(url):
        data += block
        if len(data) > max_bytes:
            raise ValueError(f"{shown(url)}: is larger than {max_bytes} bytes; it is not a file of a shard folder")
    return bytes(data)


def _open(url: str) -> IO[bytes] | Any:
    """Python's own client reads http, which fsspec would need a further package for."""
    if is_command(url):
        return gopen_pipe(url)
    if url.lower().startswith(("http://", "https://")):
        return _OPENER.open(url, timeout=TIMEOUT)
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise NotImplementedError(str(error)) from None
    return file_system.open(path, "rb")


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke"
    text = str(getattr(error, "strerror", None) or error or "")
    return text.splitlines()[0] if text else type(error).__name__
