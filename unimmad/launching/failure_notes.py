"""Notes that failing ranks leave in the jobs folder, so that what failed first is shown, and not what followed.

KEY.RESTARTS.rankNNNNN.failure.json
"""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from unimmad.ranks.errors import Problem, problems_to_tell
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

logger = logging.getLogger(__name__)

_SUFFIX = ".failure.json"


@dataclass(frozen=True)
class Failure(Problem):
    """A problem, and when it was met."""

    time: Annotated[float, Field(allow_inf_nan=False)]
    """Seconds since 1970, by the node's clock."""


_NOTE = TypeAdapter(Failure)


def note_failures(folder: Path, key: str, restarts: int, rank: int, error: BaseException) -> None:
    """Leave a note of each problem that is ``rank``'s to tell."""
    now = time.time()
    for problem in problems_to_tell(error, rank):
        note = Failure(**asdict(problem), time=now)
        write_text_aside(folder / f"{key}.{restarts}.rank{note.rank:05d}{_SUFFIX}", json.dumps(asdict(note)) + "\n")


def first_failure(folder: Path, key: str) -> Failure | None:
    """What failed first after the job's last restart; None where no rank could say anything."""
    names = re.compile(rf"{re.escape(key)}\.([0-9]+)\.rank[0-9]+{re.escape(_SUFFIX)}")
    notes = [
        (-int(name[1]), note)
        for path in folder.glob(f"{key}.*{_SUFFIX}")
        if (name := names.fullmatch(path.name)) and (note := _read(path))
    ]
    newest_first = sorted(notes, key=lambda note: (note[0], note[1].time, note[1].rank))
    return newest_first[0][1] if newest_first else None


def _read(path: Path) -> Failure | None:
    """None, and a word in the log, where a node that died left half a note: the others' may still say what failed."""
    try:
        return _NOTE.validate_python(read_json(path))
    except (OSError, ValueError) as error:
        reason = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
        logger.warning("%s can't be read (%s)", path, reason)
        return None
