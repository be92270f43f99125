"""What a job remembers across its restarts: how often it began, and which run folder is its own.

``--resume auto`` alone would open the next numbered folder once a run is finished, and ``--resume never`` a fresh one
at each start; a requeued job must do neither.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from unimmad.checkpoint.folder import CheckpointFolder, read_state
from unimmad.documents import read_json
from unimmad.files import write_text_aside
from unimmad.parallel.world import World
from unimmad.training.arguments import TrainArguments
from unimmad.training.run_folder import choose_run_folder

FINISHED = "finished"


class RunRecord:
    """A small file beside the job's logs: ``KEY.run.json``."""

    def __init__(self, jobs_folder: Path, key: str) -> None:
        self._path = jobs_folder / f"{key}.run.json"

    def starts(self) -> int:
        """How often the job has begun to train."""
        return int(self._read().get("starts", 0))

    def settle(self, arguments: TrainArguments, world: World) -> TrainArguments | None:
        """The arguments that continue the job's own run; None where that is finished. Collective, once a start.

        Raises:
            ValueError: as ``choose_run_folder``; every rank raises it.
        """
        answer = world.on_main(lambda: self._settle(arguments))
        if answer["resume"] == FINISHED:
            return None
        return replace(arguments, output_dir=Path(answer["run"]), resume=answer["resume"])

    def _settle(self, arguments: TrainArguments) -> dict[str, str]:
        known = self._read()
        if not known:
            run = choose_run_folder(arguments.output_dir, arguments.resume, arguments.recipe)
            self._write(run.path, 1)
            return {"run": str(run.path), "resume": str(run.resume_from or "auto")}
        path = Path(known["run"])
        self._write(path, known["starts"] + 1)
        newest = CheckpointFolder(path).newest()
        if newest is not None and read_state(newest).get("finished"):
            return {"run": str(path), "resume": FINISHED}
        return {"run": str(path), "resume": str(newest or "auto")}

    def _read(self) -> dict[str, Any]:
        return dict(read_json(self._path)) if self._path.is_file() else {}

    def _write(self, run: Path, starts: int) -> None:
        write_text_aside(self._path, json.dumps({"run": str(run), "starts": starts}) + "\n")
