"""The service over real connections: the detector's numbers, refusals in one line, a bounded queue, nothing lost."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest
from launches import ROOT
from PIL import Image
from serving.conftest import CLOTH, COOKIE, Client, form

from benchmarks.serving import multipart
from unimmad.inference.detector import Detector
from unimmad.serving.answers import Answer
from unimmad.serving.app import ServingSettings, create_app
from unimmad.serving.batching import Batching
from unimmad.serving.forms import UploadLimits
from unimmad.serving.server import listening_socket, serve

NAMES = ("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def client(served, detector):
    settings = ServingSettings("runs/<tiny>", Batching(batch_size=4, max_wait=0.05), UploadLimits(2**20), NAMES)
    with served(detector, settings) as client:
        yield client


def metric(client: Client, line: str) -> float:
    text = client.raw("GET", "/metrics")[2].decode()
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_answers_are_the_detectors_alone_and_in_batches_of_classes(client, detector, encoded):
    asked = [(files, name) for name, samples in encoded.items() for files in samples for _ in range(2)]
    asked += [({"rgb": encoded[COOKIE][0]["rgb"]}, COOKIE), (encoded[CLOTH][0], None)]
    expected = [detector.predict(files, class_name=name, name="x") for files, name in asked]
    batches = metric(client, "unimmad_batch_samples_count")

    def send(files, name) -> tuple[int, dict[str, str], bytes]:
        return client.send(form(files, name="x", **({"class_": name} if name else {})))

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(send, *zip(*asked, strict=True)))
    batches = metric(client, "unimmad_batch_samples_count") - batches
    assert 1 <= batches < len(asked), "samples shared batches"
    for (status, _, body), wanted in zip(together, expected, strict=True):
        said = Answer.model_validate_json(body)
        assert status == 200
        assert said.score == pytest.approx(wanted.score, rel=1e-5)
        assert (said.class_name, said.modalities) == (wanted.class_name, list(wanted.modalities))
        assert (said.threshold, said.threshold_of) == (wanted.threshold, wanted.threshold_of)
        assert (said.anomalous, said.notes) == (wanted.anomalous, list(wanted.notes))
    assert {json.loads(body)["anomalous"] for _, _, body in together} == {True, False, None}
    alone = json.loads(client.send([*form(*asked[:1][0][:1], class_=COOKIE, map="npy"), ("map", (None, "png"))])[2])
    assert alone["score"] == expected[0].score
    map_HW = np.load(io.BytesIO(base64.b64decode(alone["map_npy"])), allow_pickle=False)
    np.testing.assert_array_equal(map_HW, expected[0].map_HW)
    with Image.open(io.BytesIO(base64.b64decode(alone["map_png"]))) as picture:
        assert picture.width > 4 * 128


def test_the_class_may_be_left_out_and_the_dataset_named_alone(client, encoded):
    files = encoded[CLOTH][0]
    said = json.loads(client.send([("image", ("", b"")), *form(files, dataset="materials", class_="")])[2])
    assert (said["class"], said["threshold_of"]) == (None, "all classes")
    assert not any("not one that" in note for note in said["notes"])
    unnamed = json.loads(client.send([("image", ("cloth", files["rgb"].read_bytes()))])[2])
    assert (unnamed["score"], unnamed["name"]) == (said["score"], "cloth")


def bad_forms(encoded) -> list[tuple[int, str, list]]:
    """Status, words of the message, parts."""
    rgb, depth = (encoded[COOKIE][0][name].read_bytes() for name in ("rgb", "depth"))
    good = ("rgb", ("a.png", rgb))
    complex_npy, words_npy, short_npy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(complex_npy, np.zeros((8, 8), np.complex64))
    np.save(words_npy, np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(short_npy, np.zeros((8, 8)))
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "|u1", "fortran_order": False, "shape": (99999, 99999)})
    return [
        (400, "no image came", [("class", (None, "cookie"))]),
        (400, "no image came", []),
        (400, "two images of 'rgb'", [good, good]),
        (400, "class came twice", [good, ("class", (None, "cookie")), ("class", (None, "rope"))]),
        (400, "did you mean class?", [good, ("clas", (None, "cookie"))]),
        (400, "rgb came as text", [("rgb", (None, "hello"))]),
        (400, "Too many files", [(f"m{number}", ("a.png", rgb)) for number in range(20)]),
        (400, "Too many fields", [good, *(("name", (None, "x")) for _ in range(9))]),
        (400, "maximum size", [good, ("name", (None, "x" * 5000))]),
        (422, "modality rgbd is not known", [("rgbd", ("a.png", rgb))]),
        (422, "did you mean solids/cookie?", [good, ("class", (None, "cooky"))]),
        (422, "dataset 'solid' is not", [good, ("dataset", (None, "solid"))]),
        (422, "map 'gif' is not known", [good, ("map", (None, "gif"))]),
        (422, "not of PNG, JPEG, TIFF, NPY, BMP, WebP or GIF", [("rgb", ("a.png", b"\x00" * 99))]),
        (422, "type .pdf is not read; use one of .bmp, .gif", [("rgb", ("a.pdf", b"%PDF-1.4"))]),
        (422, "known are solids/cookie, materials/cloth. Or leave it out", [good, ("class", (None, "zzz"))]),
        (422, "type .pdf is not read", [("rgb", ("a", b"%PDF-1.4"))]),
        (422, "does not open as PNG", [("rgb", ("a.png", rgb[: len(rgb) // 2]))]),
        (422, "does not open as PNG", [("rgb", ("a\u202e.png", rgb[:40]))]),
        (422, "not of PNG", [("rgb", ("a.png", b""))]),
        (422, "values are complex64", [("rgb", ("a.npy", complex_npy.getvalue()))]),
        (422, "Python objects", [("rgb", ("a.npy", words_npy.getvalue()))]),
        (422, "ends before its last value", [("rgb", ("a.npy", short_npy.getvalue()[:-8]))]),
        (422, "more than the limit", [("rgb", ("a.npy", huge.getvalue()))]),
        (
            422,
            "all images and the mask of a sample must have one size",
            [good, ("depth", ("a.npy", short_npy.getvalue()))],
        ),
        (422, "depth", [("rgb", ("a.png", depth)), ("depth", ("a.png", rgb))]),
        (413, "a request may have", [("rgb", ("a.png", b"\x00" * 2**21))]),
    ]


def test_bad_requests_get_one_line_and_good_ones_among_them_their_answer(client, detector, encoded):
    files = encoded[COOKIE][0]
    wanted = detector.predict(files, class_name=COOKIE).score
    bad = bad_forms(encoded)
    with ThreadPoolExecutor(6) as pool:
        refused = [pool.submit(client.send, parts) for _, _, parts in bad]
        answered = [pool.submit(client.send, form(files, class_=COOKIE)) for _ in bad[::3]]
    for future, (status, words, _) in zip(refused, bad, strict=True):
        got, _, body = future.result()
        said = json.loads(body)
        assert (got, list(said)) == (status, ["error"]), said
        assert words in said["error"]
        assert said["error"].isprintable()
        assert len(said["error"]) <= 800
    assert [json.loads(future.result()[2])["score"] for future in answered] == pytest.approx([wanted] * len(answered))
    assert metric(client, "unimmad_requests_inside") == 0


def test_what_is_no_form_is_refused_in_json(client):
    kind = {"Content-Type": "multipart/form-data"}
    wrong = [
        (415, client.raw("POST", "/predict", b"{}", {"Content-Type": "application/json"})),
        (400, client.raw("POST", "/predict", b"hello", kind)),
        (400, client.raw("POST", "/predict", b"hello", {"Content-Type": "multipart/form-data; boundary=x"})),
        (405, client.raw("GET", "/predict")),
        (404, client.raw("GET", "/docs")),
    ]
    for status, (got, _, body) in wrong:
        assert (got, list(json.loads(body))) == (status, ["error"])
    assert client.raw("GET", "/", headers={"Host": "example.com"})[0] == 400


def test_the_page_needs_no_script_and_nothing_from_elsewhere(client, encoded):
    status, headers, body = client.raw("GET", "/")
    page = body.decode()
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page
    assert not re.search(r"""(src|href|action)=["'](https?:)?//""", page)
    assert "runs/&lt;tiny&gt;" in page
    assert all(words in page for words in ('type="file" name="depth"', "solids/cookie", "Retry-After", "map_npy"))
    schema = json.loads(client.raw("GET", "/openapi.json")[2])
    assert set(schema["paths"]) == {"/predict", "/healthz", "/readyz", "/metrics"}
    (body,) = schema["paths"]["/predict"]["post"]["requestBody"]["content"].values()
    assert body["schema"]["properties"]["rgb"]["description"] == "PNG, JPEG, TIFF, NPY, BMP, WebP or GIF: rgb"
    said = json.loads(client.send(form(encoded[CLOTH][0]))[2])
    described = schema["components"]["schemas"]["Answer"]["properties"]
    assert set(said) <= set(described)
    example = re.search(r"```json\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    assert list(json.loads(example[1])) == list(said)


class Held(Detector):
    """Scores when it is let."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.engine, detector.catalogue, detector.thresholds)
        self.may_score = threading.Event()
        self.fails = False

    def score_prepared(self, samples, batch_size=8):
        assert self.may_score.wait(30)
        if self.fails:
            raise RuntimeError("out of\nmemory")
        return super().score_prepared(samples, batch_size)


def waited_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_full_queue_says_when_to_ask_again_and_loses_nothing(served, detector, encoded):
    held, parts = Held(detector), form(encoded[CLOTH][0])
    settings = ServingSettings("x", Batching(1, 0, 2), UploadLimits(2**20, 0.3))
    with served(held, settings) as client, ThreadPoolExecutor(2) as pool:
        first = [pool.submit(client.send, parts) for _ in range(2)]
        waited_for(lambda: metric(client, "unimmad_requests_inside") == 2)
        status, headers, body = client.send(parts)
        assert (status, list(json.loads(body))) == (429, ["error"])
        assert int(headers["retry-after"]) >= 1
        assert [client.raw("GET", path)[0] for path in ("/readyz", "/healthz")] == [503, 200]
        held.may_score.set()
        assert [future.result()[0] for future in first] == [200, 200]
        assert client.raw("GET", "/readyz")[0] == 200
        held.fails = True
        status, _, body = client.send(parts)
        assert (status, json.loads(body)["error"]) == (
            500,
            "the sample could not be scored: RuntimeError: out of\\nmemory",
        )
        held.fails = False
        whole, kind = multipart(parts)
        for late in (True, False):  # one that never ends, one that leaves
            connection = HTTPConnection("127.0.0.1", client.port, timeout=10)
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Type", kind)
            connection.putheader("Content-Length", str(len(whole)))
            connection.endheaders(whole[:500])
            if late:
                assert connection.getresponse().status == 408
            else:
                waited_for(lambda: metric(client, "unimmad_requests_inside") == 1)
            connection.close()
            waited_for(lambda: metric(client, "unimmad_requests_inside") == 0)
        assert client.send(parts)[0] == 200
        counted = {
            status: metric(client, f'unimmad_requests_total{{status="{status}"}}') for status in (200, 408, 429, 499)
        }
        assert counted == {200: 3, 408: 1, 429: 1, 499: 1}


def test_sigterm_answers_what_was_accepted_and_ends(detector, encoded):
    """In the main thread, as the command does; the process goes on, and so its exit status would be 0."""
    held, parts, before = Held(detector), form(encoded[CLOTH][0]), signal.getsignal(signal.SIGTERM)
    with listening_socket("127.0.0.1", 0) as listening, ThreadPoolExecutor(5) as pool:
        client = Client(listening.getsockname()[1])
        asked = [pool.submit(client.send, parts) for _ in range(4)]

        def end() -> None:
            waited_for(lambda: metric(client, "unimmad_requests_inside") == 4)
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.5, held.may_score.set).start()

        ending = pool.submit(end)
        serve(create_app(held, ServingSettings("x", Batching(2, 0, 8))), listening)
        ending.result()
        assert [future.result()[0] for future in asked] == [200] * 4
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", client.port), timeout=5)
