"""The service as a process: a place to listen at, and an end that answers what was accepted."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal once more after a graceful end, and the exit status would not be 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listening_socket(host: str, port: int) -> socket.socket:
    """Bound and listening, so that clients may connect before the first request can be taken.

    Raises:
        ValueError: there is no such address here, or the port is in use.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port {port} does not exist: --port takes 1 to 65535, or 0 for any that is free")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"can't listen at {host}, port {port}: {reason}; choose others with --host and --port"
        ) from None


def url_of(listening: socket.socket) -> str:
    """Where the service answers."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C: then no more connections are taken, and the requests that are here answered."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's slip is told to the client
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan="on"
    )
    _Server(config).run(sockets=[listening])
