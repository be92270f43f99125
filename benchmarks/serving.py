"""``unimmad serve`` under load, against the Detector on the same encoded files.

wrk (its own package in most systems) sends the samples of a folder over a few connections. The Detector, and the
service with wrk, take turns on the processors that this command may use, so that what HTTP and the client cost is in
the figure. Then bad requests are sent among good ones, and all answers are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from unimmad.data.layouts.scan import Notices
from unimmad.inference.detector import DEFAULT_BATCH_SIZE, Detector
from unimmad.inference.inputs import InputSample, find_samples
from unimmad.report.table import Table

HELP = "unimmad serve under load, against the Detector on the same encoded files"
SCRIPT = """
local bodies = {}
local number = 0
for index = 1, %(count)d do
  local file = io.open("%(folder)s/" .. index, "rb")
  bodies[index] = file:read("*a")
  file:close()
end
wrk.method = "POST"
wrk.headers["Content-Type"] = "%(content_type)s"
request = function()
  number = number %% #bodies + 1
  return wrk.format(nil, nil, nil, bodies[number])
end
"""
"""Of wrk: each connection's next request is the next sample."""

Part = tuple[str | None, bytes | str]
"""File name (None: a field) and content."""


def multipart(parts: Sequence[tuple[str, Part]], boundary: str = "") -> tuple[bytes, str]:
    """A form's body and its Content-Type."""
    boundary = boundary or uuid.uuid4().hex
    lines = []
    for name, (file_name, content) in parts:
        named = f'; filename="{file_name}"' if file_name is not None else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        lines.append(head.encode() + (content.encode() if isinstance(content, str) else content) + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint folder or .onnx file")
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="image files and folders, as for unimmad predict"
    )
    parser.add_argument("--class", dest="class_name", metavar="CLASS", help="of all samples")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="of both (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=16, help="that wrk keeps busy (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=20, help="of each turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, whose median counts")
    parser.add_argument(
        "--requests", type=int, default=10_000, help="after which memory is looked at for the last time"
    )
    parser.add_argument("--bad", type=int, default=1000, help="bad requests, sent among as many good ones")


def run(arguments: argparse.Namespace) -> str:
    """Measure and give the tables.

    Raises:
        ValueError: wrk is not installed, or what is to be scored can't be.
    """
    if shutil.which("wrk") is None:
        raise ValueError("wrk is not installed: your system's package of that name has it")
    detector = Detector.open(arguments.checkpoint, device=arguments.device)
    samples = find_samples(arguments.paths, detector.catalogue.modality_names, Notices())
    random.Random(0).shuffle(samples)  # so that a short turn has some of each kind
    list(detector.predict_all(samples[:DEFAULT_BATCH_SIZE], class_name=arguments.class_name))
    with tempfile.TemporaryDirectory() as folder, _service(arguments) as (pid, port):
        script = _wrk_script(Path(folder), samples, arguments.class_name)
        alone, turns = [], []
        memory = [(0, _resident(pid))]
        for _ in range(arguments.rounds):
            alone.append(_detector_rates(detector, samples, arguments))
            turns.append(_wrk(script, pid, port, arguments))
            memory.append((memory[-1][0] + turns[-1].requests, _resident(pid)))
        while memory[-1][0] < arguments.requests:
            done = _wrk(script, pid, port, arguments)
            memory.append((memory[-1][0] + done.requests, _resident(pid)))
        counted = _bad_among_good(port, samples[0], arguments.class_name, arguments.bad)
        memory.append((memory[-1][0] + 2 * arguments.bad, _resident(pid)))
    tables = (_speed_table(alone, turns), _memory_table(memory), _answers_table(counted))
    return "\n\n".join(
        [
            *(table.to_markdown() for table in tables),
            f"{os.cpu_count()} cores, of which this used {len(os.sched_getaffinity(0))}; load {os.getloadavg()[0]:.1f}",
        ]
    )


@dataclass(frozen=True)
class Turn:
    """What wrk said."""

    requests: int
    rate: float
    """Requests a second."""
    cpu_rate: float
    """Requests a second that a processor worked for them, in the service and in wrk."""
    median: str
    slowest: str
    """In wrk's words: the 99th percentile of the latency."""
    failed: int
    """Answers that were not 200, and broken connections."""


@contextmanager
def _service(arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "unimmad", "serve", "--checkpoint", str(arguments.checkpoint), "--port", "0"]
    command += ["--device", arguments.device, "--batch-size", str(arguments.batch_size)]
    command += ["--queue", str(2 * max(arguments.connections, arguments.batch_size))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        said = service.stdout.readline()
        if not said:
            raise ValueError("the service did not start; it says above why")
        try:
            yield service.pid, int(said.rpartition(":")[2])
        finally:
            service.terminate()


def _form(sample: InputSample, class_name: str | None) -> list[tuple[str, Part]]:
    images = sample.images if isinstance(sample.images, Mapping) else {"image": sample.images}
    files = {name: Path(str(image)) for name, image in images.items()}
    parts: list[tuple[str, Part]] = [(name, (file.name, file.read_bytes())) for name, file in files.items()]
    return parts if class_name is None else [*parts, ("class", (None, class_name))]


def _wrk_script(folder: Path, samples: Sequence[InputSample], class_name: str | None) -> Path:
    content_type = ""
    for number, sample in enumerate(samples, 1):
        body, content_type = multipart(_form(sample, class_name), "sample-of-the-benchmark")
        (folder / str(number)).write_bytes(body)
    script = folder / "samples.lua"
    script.write_text(SCRIPT % {"count": len(samples), "folder": folder, "content_type": content_type})
    return script


def _detector_rates(
    detector: Detector, samples: Sequence[InputSample], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Samples a second, and a second of a processor, read from their files."""
    started, computed = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - started < arguments.seconds:
        count += len(
            list(detector.predict_all(samples, class_name=arguments.class_name, batch_size=arguments.batch_size))
        )
    passed = time.perf_counter() - started
    return count / passed, count / (time.process_time() - computed)


def _wrk(script: Path, pid: int, port: int, arguments: argparse.Namespace) -> Turn:
    command = ["wrk", "-t1", f"-c{arguments.connections}", f"-d{arguments.seconds}s", "--timeout", "60s", "--latency"]
    command += ["-s", str(script), f"http://127.0.0.1:{port}/predict"]
    _wait_until_idle(port)
    computed = _cpu_seconds(pid) + _cpu_of_children()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    computed = _cpu_seconds(pid) + _cpu_of_children() - computed
    requests = int(_found(r"(\d+) requests in", said))
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = sum(map(int, errors.groups())) if errors else 0
    return Turn(
        requests=requests,
        rate=float(_found(r"Requests/sec:\s+(\S+)", said)),
        cpu_rate=requests / computed,
        median=_found(r"^\s+50%\s+(\S+)", said),
        slowest=_found(r"^\s+99%\s+(\S+)", said),
        failed=failed + (int(others[1]) if others else 0),
    )


def _wait_until_idle(port: int) -> None:
    """wrk leaves without its last answers, which are still worked on."""
    while True:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/metrics")
        counts = connection.getresponse().read().decode()
        connection.close()
        if _found(r"^unimmad_requests_inside (\S+)", counts) == "0.0":
            return
        time.sleep(0.1)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk said something else than was expected: {text}")
    return found[1]


def _resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(pid: int) -> float:
    """Of all of a process's threads."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _bad_among_good(port: int, sample: InputSample, class_name: str | None, count: int) -> Counter[tuple[str, int]]:
    """How many requests of each kind were answered with each status."""
    good = _form(sample, class_name)
    name, (file_name, content) = good[0]
    assert isinstance(content, bytes)
    bad = [
        [(name, (file_name, content[: len(content) // 2])), *good[1:]],
        [(name, ("a.png", b"not an image")), *good[1:]],
        [("no_such_modality", (file_name, content))],
        [*good, ("class", (None, "no such class"))],
        [],
    ]
    requests = [
        (kind, form) for number in range(count) for kind, form in (("good", good), ("bad", bad[number % len(bad)]))
    ]

    def send(request: tuple[str, Sequence[tuple[str, Part]]]) -> tuple[str, int]:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        body, content_type = multipart(request[1])
        connection.request("POST", "/predict", body, {"Content-Type": content_type})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        if ("score" in said) != (answer.status == 200):
            raise ValueError(f"status {answer.status} with {said}")
        return request[0], answer.status

    _wait_until_idle(port)
    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(send, requests))


def _cpu_of_children() -> float:
    """Of those that have ended: wrk."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _speed_table(alone: Sequence[tuple[float, float]], turns: Sequence[Turn]) -> Table:
    clock, computed = (list(rates) for rates in zip(*alone, strict=True))
    served, served_computed = [turn.rate for turn in turns], [turn.cpu_rate for turn in turns]
    shares, shares_computed = _ratios(served, clock), _ratios(served_computed, computed)
    rows = [
        ("Detector, from files", _middle(clock, 2), _middle(computed, 2), ""),
        ("unimmad serve, by wrk", _middle(served, 2), _middle(served_computed, 2), _latency(turns)),
        ("share", _middle(shares, 3), _middle(shares_computed, 3), ""),
    ]
    heads = ("", "samples/s", "samples/s of a processor", "latency 50% / 99%")
    failed = sum(turn.failed for turn in turns)
    notes = [f"median (from to) of {len(turns)} turns each; {failed} requests failed"]
    return Table(heads, rows, notes=notes)


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def _middle(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _latency(turns: Sequence[Turn]) -> str:
    """Of the turn in the middle."""
    turn = sorted(turns, key=lambda turn: turn.rate)[len(turns) // 2]
    return f"{turn.median} / {turn.slowest}"


def _memory_table(memory: Sequence[tuple[int, float]]) -> Table:
    shown = [memory[0], *(entry for entry in memory[1:-1] if entry[0] >= 1000), memory[-1]]
    return Table(("requests", "resident MiB"), [(str(count), f"{size:.0f}") for count, size in shown])


def _answers_table(counted: Counter[tuple[str, int]]) -> Table:
    rows = [(f"{kind} requests answered {status}", str(count)) for (kind, status), count in sorted(counted.items())]
    return Table(("", "requests"), rows)
