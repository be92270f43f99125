"""A batch comes, or the run stops with one line: no room, no memory, no worker, no file left to open."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards
from launches import CONFIGS, EVALUATE, TRAIN, environment, run

from unimmad.config import load_recipe
from unimmad.data.index import load_index
from unimmad.data.reading import stream
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.parcel import ALIGNMENT, Failure, handed_over
from unimmad.data.reading.stream import evaluation_rounds, training_batches
from unimmad.data.sample import Batch, Sample

SIZE, SAMPLES, BATCH = 32, 24, 4
MEMORY = "memfd:batch"
"""What the kernel calls memory that came from a worker, where it lists a process's."""


class TroubledShards:
    """One class, and a trouble that comes over the worker that reads sample 6, in the second batch."""

    def __init__(self, trouble: Callable[[Sample], Sample]) -> None:
        self.trouble = trouble

    def classes(self, split: str) -> dict[str, tuple[Any, ...]]:
        entry = SimpleNamespace(images={"rgb": None})
        return {"a/x": tuple(SimpleNamespace(number=number, entry=entry) for number in range(SAMPLES))}

    def read(self, ref: Any, image_size: int, **_: Any) -> Sample:
        sample = Sample(
            key=str(ref.number),
            dataset="a",
            class_name="a/x",
            defect="good",
            anomalous=False,
            modalities=("rgb",),
            slots=(0,),
            images_MCHW=torch.full((1, 3, image_size, image_size), float(ref.number)),
            mask_HW=torch.zeros(image_size, image_size, dtype=torch.bool),
        )
        return self.trouble(sample) if ref.number == 6 else sample


def no_trouble(sample: Sample) -> Sample:
    return sample


def killed(_: Sample) -> Sample:
    time.sleep(0.2)  # for what was made before to be on its way
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def without_room(sample: Sample) -> Sample:
    """As where shared memory is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    return sample


def without_files(sample: Sample) -> Sample:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return sample


def that_cannot_be_sent(sample: Sample) -> Sample:
    return replace(sample, defect=threading.Lock())  # type: ignore[arg-type]


def in_training(trouble: Callable[[Sample], Sample]) -> Iterator[Batch]:
    shards: Any = TroubledShards(trouble)
    order = TrainingOrder(shards.classes("train"), lambda _: 0, seed=1, batch=BATCH, sampling="natural")
    return (
        batch
        for _, batch in training_batches(
            shards, order, image_size=SIZE, rank=0, world_size=1, workers=2, start_step=0, end_step=SAMPLES // BATCH
        )
    )


def in_evaluation(trouble: Callable[[Sample], Sample]) -> Iterator[Batch]:
    shards: Any = TroubledShards(trouble)
    rounds = evaluation_rounds(shards, "test", image_size=SIZE, batch_size=BATCH, workers=2)
    return (batch for batch in rounds if batch is not None)


both = pytest.mark.parametrize("batches", [in_training, in_evaluation])


@both
@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (killed, r"(exited unexpectedly|is gone \(.*\)): the process was killed, most often for want of memory"),
        (without_room, r"can't hand over what it read \(.*File too large\)"),
        (without_files, r"(can't hand over what it read|is gone) .*[Tt]oo many (open )?files"),
    ],
)
def test_a_batch_that_cannot_come_ends_the_stream_with_one_line(
    batches: Callable[..., Iterator[Batch]], trouble: Callable[[Sample], Sample], expected: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=expected + r".*0 workers") as caught:
        list(batches(trouble))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60


@both
def test_a_batch_that_cannot_be_sent_is_not_lost_without_a_word(batches: Callable[..., Iterator[Batch]]) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        list(batches(that_cannot_be_sent))


@both
@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (0, "batch 0 of 4 samples was due and batch 1 of 4 came"),
        (3, "batch 3 of 4 samples was due and batch 4 of 4 came"),
        (5, "batch 5 of 4 samples was due and none came"),
    ],
)
def test_numbers_must_follow_each_other(
    batches: Callable[..., Iterator[Batch]], monkeypatch: pytest.MonkeyPatch, lost: int, expected: str
) -> None:
    def losing(pipeline: Any, workers: int, **_: Any) -> Iterator[Any]:
        return (item for number, item in enumerate(pipeline) if number != lost)

    monkeypatch.setattr(stream, "load", losing)
    read = batches(no_trouble)
    for _ in range(lost):
        next(read)
    with pytest.raises(ValueError, match=f"samples are lost: {expected}"):
        next(read)


@both
def test_a_batch_must_have_all_its_samples(
    batches: Callable[..., Iterator[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = stream.collate
    monkeypatch.setattr(stream, "load", lambda pipeline, workers, **_: iter(pipeline))  # in this process
    monkeypatch.setattr(stream, "collate", lambda samples: collate([one for one in samples if one.key != "6"]))
    with pytest.raises(ValueError, match=r"of 4 samples was due and batch \d of 3 came"):
        list(batches(no_trouble))


def test_the_memory_of_a_batch_goes_with_it() -> None:
    """Masks that are kept do not keep it."""
    gc.collect()
    before, files = maps_of_batches(), len(os.listdir("/proc/self/fd"))
    masks, mapped = [], 0
    for batch in in_evaluation(no_trouble):
        mapped = max(mapped, maps_of_batches())
        masks += [sample.mask_HW for sample in batch.samples]
        assert batch.images_TCHW[:, 0, 0, 0].tolist() == [float(sample.key) for sample in batch.samples]
        del batch
    gc.collect()
    assert len(masks) == SAMPLES
    assert mapped > 0
    assert maps_of_batches() <= before
    assert len(os.listdir("/proc/self/fd")) <= files + 4  # what the first use of workers starts stays


def maps_of_batches() -> int:
    return Path("/proc/self/maps").read_text().count(MEMORY)


def test_what_arrives_is_what_was_sent() -> None:
    sent = {
        "images": torch.randn(3, 5),
        "repeated": torch.arange(3.0).expand(4, 3),
        "turned": torch.randn(3, 5).T,
        "mask": torch.tensor([True, False]),
        "nothing": torch.empty(0),
        "whole": torch.arange(7),
        "name": "x",
    }
    arrived = pickle.loads(pickle.dumps(handed_over(sent)))
    assert arrived["name"] == "x"
    for name, tensor in sent.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(arrived[name], tensor)
            assert arrived[name].dtype == tensor.dtype
            assert not arrived[name].numel() or arrived[name].data_ptr() % 4 == 0
    assert arrived["whole"].data_ptr() % ALIGNMENT == 0
    arrived["images"] += 1  # without a warning or a fault


def test_the_message_is_short_whatever_the_item() -> None:
    """A pipe takes 4096 bytes whole or not at all."""
    item = {"images": torch.zeros(1000, 1000), "names": ["a long name"] * 1000}
    assert len(pickle.dumps(handed_over(item))) < 1000


def test_what_is_gone_is_a_failure() -> None:
    sent = pickle.dumps(handed_over(torch.zeros(3)))
    pickle.loads(sent)
    assert isinstance(pickle.loads(sent), Failure)  # it is handed over once


def test_loader_processes_end_with_the_main_one() -> None:
    """However it ends; here before it can tell them."""
    program = (
        "import os, test_lost_batches as made\n"
        "stream = made.in_evaluation(made.no_trouble)\n"
        "print(next(stream).size, flush=True)\n"
        "os._exit(3)"
    )
    here = Path(__file__).parent
    done = subprocess.run(  # returns once nobody holds the pipe of its output any more
        [sys.executable, "-c", program],
        cwd=here,
        env=environment() | {"PYTHONPATH": str(here.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (3, f"{BATCH}\n"), done.stderr


@pytest.fixture(scope="module")
def small_shm() -> Callable[[str], list[str]]:
    """The argv before a command that then has so little of ``/dev/shm``, as a container may have."""

    def argv(size: str) -> list[str]:
        return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]

    try:
        found = subprocess.run([*argv("4k"), "true"], capture_output=True, check=False, timeout=60).returncode
    except OSError:
        found = -1
    if found:
        pytest.skip("no mount of its own for a process here (needs unshare and the right to mount)")
    return argv


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    hand_made_shards(folder / "data", ["solids"])
    hand_made_checkpoint(folder / "runs" / "tiny", load_recipe("tiny"), [Path("data")])
    return folder


def command(program: str, output: str = "runs/new") -> list[str]:
    if program == "train":
        argv = [str(TRAIN), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny", "--data", "data"]
        sets = ("data.workers=2", "training.evaluate_every=0", "training.epochs=50")
        argv += [*(word for one in sets for word in ("--set", one)), "--max-steps", "20", "--output-dir", output]
    else:
        argv = [str(EVALUATE), "--workers", "2", "--no-resume"]
    return [sys.executable, *argv]


def test_an_evaluation_with_little_shared_memory_has_all_samples(
    small_shm: Callable[[str], list[str]], trained: Path
) -> None:
    done = run([*small_shm("100k"), *command("evaluate")], trained, seconds=300, threads=1)
    assert done.returncode == 0, done.stderr
    report = json.loads((trained / "runs" / "tiny" / "evaluation" / "report.json").read_text())
    found = {entry["class"]: entry["normal"] + entry["anomalous"] for entry in report["classes"]}
    samples = [sample for sample in load_index(trained / "data").samples if sample.split == "test"]
    assert found == {name: sum(s.class_name == name for s in samples) for name in ("cookie", "rope")}
    assert sum(found.values()) == len(samples) > 0


def test_no_shared_memory_at_all_is_said_before_anything_starts(
    small_shm: Callable[[str], list[str]], trained: Path
) -> None:
    done = run([*small_shm("4k"), *command("evaluate")], trained, seconds=300, threads=1)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("evaluate.py: ")]
    assert len(said) == 1
    assert re.search(
        r"2 loader processes need \d+ kB of /dev/shm .* has \d+ kB free; .*--shm-size; .*0 workers", said[0]
    )


@pytest.mark.long
def test_a_training_with_little_shared_memory_ends_as_any(small_shm: Callable[[str], list[str]], trained: Path) -> None:
    done = run([*small_shm("100k"), *command("train")], trained, seconds=300, threads=1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["evaluate", pytest.param("train", marks=pytest.mark.long)])
def test_a_command_whose_loader_process_is_killed_says_so(trained: Path, program: str) -> None:
    with subprocess.Popen(
        command(program, "runs/killed"),
        cwd=trained,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            os.kill(loader_process(process.pid), signal.SIGKILL)
            _, errors = process.communicate(timeout=240)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert len(re.findall(r"^(?:evaluate|train)\.py: .*process was killed.*0 workers", errors, re.MULTILINE)) == 1


def loader_process(command: int) -> int:
    """Waits for the first one: it forks from the server of such, which is the command's child."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        for server in children(command):
            if b"forkserver" in Path(f"/proc/{server}/cmdline").read_bytes():
                for child in children(server):
                    return child
        time.sleep(0.005)
    raise AssertionError("no loader process came up")


def children(pid: int) -> list[int]:
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in listed.read_text().split()]
    return found
