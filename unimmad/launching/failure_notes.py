"""Notes that failing ranks leave in the jobs folder, so that what failed first is shown, and not what followed.

KEY.RESTARTS.rankNNNNN.failure.json
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from unimmad.documents import read_json
from unimmad.files import write_text_aside
from unimmad.ranks.errors import problems_to_tell

_SUFFIX = ".failure.json"


@dataclass(frozen=True)
class Failure:
    """What went wrong on one rank."""

    rank: int
    node: str
    time: float
    """Seconds since 1970, by the node's clock."""
    message: str
    trace: str
    """The traceback; empty where the message is for users and says it all."""


def note_failures(folder: Path, key: str, restarts: int, rank: int, error: BaseException) -> None:
    """Leave a note of each problem that is ``rank``'s to tell."""
    now = time.time()
    for problem in problems_to_tell(error, rank):
        note = Failure(problem.rank, problem.host, now, problem.message, problem.trace)
        write_text_aside(folder / f"{key}.{restarts}.rank{note.rank:05d}{_SUFFIX}", json.dumps(asdict(note)) + "\n")


def first_failure(folder: Path, key: str) -> Failure | None:
    """What failed first after the job's last restart; None where no rank could say anything."""
    notes = [(-int(path.name.split(".")[1]), Failure(**read_json(path))) for path in folder.glob(f"{key}.*{_SUFFIX}")]
    newest_first = sorted(notes, key=lambda note: (note[0], note[1].time, note[1].rank))
    return newest_first[0][1] if newest_first else None
