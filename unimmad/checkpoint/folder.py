"""Where a run's checkpoints lie, how one becomes visible, and which stay.

    RUN/checkpoints/
        latest                      the name of the newest whole checkpoint
        step_00000200/
            state.json              step, data position, recipe, versions, layout (readable)
            index.json              every tensor: shape, files, pieces
            digests.json            the SHA-256 of every other file here
            model-00000.safetensors         one a rank that owns weights
            optimizer-00000.safetensors     one a rank that owns optimizer state

A checkpoint is written into a hidden folder beside, which is renamed when every rank is done, and only then named in
``latest``. One that goes is renamed to a hidden folder first, so every visible one is whole at any moment. A killed run
leaves hidden folders at most; the next save removes them. One whose place another of its step takes is hidden as
replaced, and comes back where the other did not get there.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from unimmad.serialization.atomic_write import temporary_beside, write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.validation import validated

CHECKPOINTS = "checkpoints"
LATEST = "latest"
STATE_NAME = "state.json"
FORMAT: Literal[1] = 1
"""Of state.json."""
NO_VERIFY_HELP = "load a checkpoint without holding its files against their digests"
"""Of every command that has the option."""
_STEP = "step_"
_NAME = re.compile(rf"{_STEP}[0-9]{{8,}}")
WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Of files that hold weights alone."""
_REMEDY = "use another checkpoint of the run"
_PARTIAL = "partial_"
_GOING = "going_"
_REPLACED = "replaced_"


class _State(TypedDict):
    """What state.json must say, and of what type the rest is."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    format: NotRequired[Literal[1]]
    step: Annotated[int, Field(ge=0, lt=2**53)]
    recipe: dict[str, Any]
    finished: NotRequired[bool]
    backbone_weights: NotRequired[str]
    data: NotRequired[list[str]]
    trained_on: NotRequired[dict[str, Any]]


_STATE: TypeAdapter[_State] = TypeAdapter(_State)


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    run: Path

    @property
    def root(self) -> Path:
        return self.run / CHECKPOINTS

    def begin(self, step: int) -> Path:
        """A fresh hidden folder for all ranks to write into (called by one); leftovers of killed saves go."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._bring_back()
        for leftover in (path for prefix in (_PARTIAL, _GOING, _REPLACED) for path in self.root.glob(f".{prefix}*")):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = temporary_beside(self.root / f"{_PARTIAL}{step:08d}")
        partial.mkdir()
        return partial

    def commit(self, partial: Path, step: int, keep: int) -> Path:
        """Make a hidden folder the newest checkpoint, of ``step``; beside it the ``keep - 1`` of highest step stay."""
        final = self.root / f"{_STEP}{step:08d}"
        _sync_files(partial)
        self._put_in_place(partial, final)
        write_text_aside(self.root / LATEST, final.name + "\n")
        # A run continued from an older checkpoint saves steps below those that are there.
        others = [path for path in self.steps() if path != final]
        for old in others[: max(0, len(others) - (keep - 1))]:
            self._remove(old)
        return final

    def _put_in_place(self, partial: Path, final: Path) -> None:
        replaced = self._out_of_sight(final, _REPLACED) if final.exists() else None
        try:
            partial.rename(final)
        except OSError:
            if replaced is None:
                raise
            if not replaced.exists():  # a process that looked for the newest at this moment brought it back
                return self._put_in_place(partial, final)
            replaced.rename(final)
            raise
        if replaced is not None:
            self._remove(replaced)
        return None

    def _remove(self, checkpoint: Path) -> None:
        """Out of sight at once, then off the disk: a run killed half-way leaves no torn checkpoint in sight."""
        shutil.rmtree(self._out_of_sight(checkpoint), ignore_errors=True)

    def _out_of_sight(self, checkpoint: Path, prefix: str = _GOING) -> Path:
        going = temporary_beside(self.root / f"{prefix}{checkpoint.name}")
        checkpoint.rename(going)
        return going

    def _bring_back(self) -> None:
        """What was replaced, where a process was killed before the other had its place."""
        for replaced in self.root.glob(f".{_REPLACED}*"):
            place = self.root / replaced.name.removeprefix(f".{_REPLACED}").partition(".")[0]
            if _NAME.fullmatch(place.name) and not place.exists() and (replaced / STATE_NAME).is_file():
                with suppress(OSError):  # another process does it, or nothing can be written
                    replaced.rename(place)

    def newest(self) -> Path | None:
        """The newest whole checkpoint; None where there is none yet."""
        self._bring_back()
        named = self.root / self._named_latest()
        if named != self.root and (named / STATE_NAME).is_file():
            return named
        steps = [step for step in self.steps() if (step / STATE_NAME).is_file()]
        return steps[-1] if steps else None

    def _named_latest(self) -> str:
        """What ``latest`` says; empty where that is not the name of a checkpoint, and so might lead anywhere."""
        latest = self.root / LATEST
        if not latest.is_file():
            return ""
        with latest.open("rb") as file:
            text = file.read(64).decode("ascii", errors="replace").strip()
        return text if _NAME.fullmatch(text) else ""

    def steps(self) -> list[Path]:
        return sorted(path for path in self.root.glob(f"{_STEP}*") if _NAME.fullmatch(path.name))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means: a step folder itself, or the newest of a run folder.

    Raises:
        ValueError: nothing of the kind is there.
    """
    if (path / STATE_NAME).is_file():
        return path
    for run in (path, path.parent):
        newest = CheckpointFolder(run).newest()
        if newest is not None and (run == path or path.name == CHECKPOINTS):
            return newest
    if torn := _steps_meant(path):
        raise ValueError(f"{torn[-1]} is not a whole checkpoint: {STATE_NAME} is missing; {_REMEDY}")
    if path.is_file():
        raise ValueError(
            f"{path} is a file, and a checkpoint is a folder; unimmad convert makes one of released weights (.pth)"
            if path.suffix.lower() in WEIGHT_SUFFIXES
            else f"{path} is a file, and a checkpoint is a folder: give a run folder, or one of its {CHECKPOINTS}/"
        )
    raise ValueError(
        f"{path} is not a checkpoint, nor a run folder with one (it holds no {STATE_NAME}, and none in {CHECKPOINTS}/)"
    )


def _steps_meant(path: Path) -> list[Path]:
    """A step folder itself, or those of a run folder or of its folder of checkpoints; whole or not."""
    if path.is_dir() and _NAME.fullmatch(path.name):
        return [path]
    return CheckpointFolder(path.parent if path.name == CHECKPOINTS else path).steps()


def newest_run(runs: Path) -> Path | None:
    """The run folder below ``runs`` whose checkpoint was written last; None where there is none."""
    with_latest = [latest for latest in runs.glob(f"*/{CHECKPOINTS}/{LATEST}") if latest.is_file()]
    if not with_latest:
        return None
    return max(with_latest, key=lambda latest: latest.stat().st_mtime).parent.parent


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's state.json.

    Raises:
        ValueError: it is missing, cut short or of another form.
    """
    path = checkpoint / STATE_NAME
    try:
        state = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is damaged; {_REMEDY}") from None
    validated(_STATE, state, str(path), f"it is not the state of a UniMMAD checkpoint; {_REMEDY}")
    return state


def _sync_files(folder: Path) -> None:
    """To the disk itself, the folder's own list of files last, so that a rename never shows what a crash can undo."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
