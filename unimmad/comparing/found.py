"""What lies in a comparison's folder already, whatever was asked for then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.comparing.results import NAME, Result, read_result
from unimmad.comparing.running import kept_reason
from unimmad.comparing.tables import Failed
from unimmad.data.location import DataFolder, recorded_data_folder


@dataclass(frozen=True)
class Done:
    """A result of ours, and the folder of its cell."""

    folder: Path
    result: Result


def found_cells(output: Path) -> tuple[list[Done], list[Failed]]:
    """The cells ``METHOD/seed_N`` below ``output`` with a result, and those without.

    Raises:
        ValueError: none has a result, or one can't be read.
    """
    done: list[Done] = []
    failed: list[Failed] = []
    for folder in sorted(path for path in output.glob("*/seed_*") if _seed(path).isdecimal()):
        if (folder / NAME).is_file():
            done.append(Done(folder, read_result(folder / NAME)[0]))
        else:
            failed.append(Failed(f"{folder.parent.name}, seed {_seed(folder)}", kept_reason(folder)))
    if not done:
        raise ValueError(f"--table: there is no METHOD/seed_N/{NAME} in {output}; name another --output-dir")
    return done, failed


def _seed(folder: Path) -> str:
    return re.sub("^seed_", "", folder.name)


def data_of(done: Sequence[Done]) -> tuple[DataFolder, ...]:
    """What the first cell whose run is still there was trained on; none where no run is.

    Raises:
        ValueError: its state can't be read, or names a command.
    """
    for one in done:
        if newest := CheckpointFolder(one.folder / "run").newest():
            origin = str(newest / STATE_NAME)
            return tuple(recorded_data_folder(text, origin) for text in read_state(newest).get("data", []))
    return ()
