"""What a job remembers across its restarts: how often it began, and which run folder is its own.

``--resume auto`` alone would open the next numbered folder once a run is finished, and ``--resume never`` a fresh one
at each start; a requeued job must do neither.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from unimmad.checkpoint.folder import CheckpointFolder, read_state
from unimmad.parallel.world import World
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Count, Entry, validated
from unimmad.training.arguments import TrainArguments
from unimmad.training.run_folder import choose_run_folder

FINISHED = "finished"


class _Entry(Entry):
    run: Annotated[str, Field(min_length=1)]
    """The run folder."""
    starts: Annotated[Count, Field(gt=0)]


class RunRecord:
    """A small file beside the job's logs: ``KEY.run.json``."""

    def __init__(self, jobs_folder: Path, key: str) -> None:
        self._path = jobs_folder / f"{key}.run.json"

    def starts(self) -> int:
        """How often the job has begun to train.

        Raises:
            ValueError: the file is damaged.
        """
        known = self._read()
        return 0 if known is None else known.starts

    def run(self) -> Path | None:
        """The job's own run folder; None before its first start.

        Raises:
            ValueError: as ``starts``.
        """
        known = self._read()
        return None if known is None else Path(known.run)

    def settle(self, arguments: TrainArguments, world: World) -> TrainArguments | None:
        """The arguments that continue the job's own run; None where that is finished. Collective, once a start.

        Raises:
            ValueError: as ``choose_run_folder``, or the file is damaged; every rank raises it.
        """
        answer = world.on_main(lambda: self._settle(arguments))
        if answer["resume"] == FINISHED:
            return None
        return replace(arguments, output_dir=Path(answer["run"]), resume=answer["resume"])

    def _settle(self, arguments: TrainArguments) -> dict[str, str]:
        known = self._read()
        if known is None:
            run = choose_run_folder(arguments.output_dir, arguments.resume, arguments.recipe)
            self._write(run.path, 1)
            return {"run": str(run.path), "resume": str(run.resume_from or "auto")}
        path = Path(known.run)
        self._write(path, known.starts + 1)
        newest = CheckpointFolder(path).newest()
        if newest is not None and read_state(newest).get("finished"):
            return {"run": str(path), "resume": FINISHED}
        # The folder, not the checkpoint: a start before this one that still ends may save another.
        return {"run": str(path), "resume": "auto" if newest is None else str(path)}

    def _read(self) -> _Entry | None:
        if not self._path.is_file():
            return None
        remedy = "remove it to let the job begin again"
        try:
            values = read_json(self._path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._path} can't be read ({one_line(error)}); {remedy}") from None
        return validated(TypeAdapter(_Entry), values, str(self._path), remedy)

    def _write(self, run: Path, starts: int) -> None:
        write_text_aside(self._path, json.dumps({"run": str(run), "starts": starts}) + "\n")
