"""A checkpoint with thresholds, encoded samples of it, and services of it on free ports of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn
from hand_made import hand_made_checkpoint, hand_made_shards

from benchmarks.serving import Part, multipart
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.thresholds import save_thresholds
from unimmad.config import load_recipe
from unimmad.data.index import load_index
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.detector import Detector
from unimmad.serving.app import ServingSettings, create_app
from unimmad.serving.server import listening_socket

COOKIE, CLOTH = "solids/cookie", "materials/cloth"


@dataclass(frozen=True)
class Client:
    """Asks one service."""

    port: int

    def send(self, parts: list[tuple[str, Part]], path: str = "/predict") -> tuple[int, dict[str, str], bytes]:
        body, content_type = multipart(parts)
        return self.raw("POST", path, body, {"Content-Type": content_type})

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return hand_made_shards(tmp_path_factory.mktemp("serving") / "shards", ["solids", "materials"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, shards) -> Path:
    folder, _ = hand_made_checkpoint(tmp_path_factory.mktemp("serving") / "run", load_recipe("tiny"), [shards])
    scores = {COOKIE: {("rgb", "depth"): [0.3, 1.7, 0.2]}, CLOTH: {("rgb",): [1.2]}}
    save_thresholds(thresholds_by_sensors(scores, load_index(shards).datasets, tuple(scores), 0.3), folder)
    return folder


@pytest.fixture(scope="session")
def detector(checkpoint) -> Detector:
    return Detector.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def encoded(shards, tmp_path_factory) -> dict[str, list[dict[str, Path]]]:
    """The test images of two classes, as files by modality."""
    opened, folder = ShardSet.open([shards]), tmp_path_factory.mktemp("encoded")
    found: dict[str, list[dict[str, Path]]] = {COOKIE: [], CLOTH: []}
    for class_name, samples in found.items():
        for ref in opened.classes("test")[class_name]:
            files = {name: folder / f"{ref.entry.key}.{name}.png" for name in ref.entry.images}
            for name, member in ref.entry.images.items():
                files[name].write_bytes(opened.member_bytes(ref, member))
            samples.append(files)
    return found


Served = Callable[..., AbstractContextManager[Client]]


@pytest.fixture(scope="session")
def served() -> Served:
    """A service in a thread of its own; what it was asked is answered before it ends."""

    @contextmanager
    def run(detector: Detector, settings: ServingSettings) -> Iterator[Client]:
        with listening_socket("127.0.0.1", 0) as listening:
            port = listening.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(create_app(detector, settings), log_level="error", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                yield Client(port)
            finally:
                server.should_exit = True
                thread.join()

    return run


def form(files: dict[str, Path], **fields: str) -> list[tuple[str, Part]]:
    """The parts of one sample."""
    images = [(name, (file.name, file.read_bytes())) for name, file in files.items()]
    return [*images, *((name.rstrip("_"), (None, value)) for name, value in fields.items())]
