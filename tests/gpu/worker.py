"""Makes checks, one after the other, in this process; ends behind one that fails, since a GPU may be unusable then.

python -m gpu.worker DEVICE RECIPE WORK OUTCOMES NAME...
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from gpu.check import CheckError, CheckFunction, Outcome, Setting, SkippedError

from unimmad.serialization.atomic_write import write_text_aside


def main(checks: Mapping[str, CheckFunction]) -> None:
    """Make those named on the command line."""
    device, recipe, work, outcomes, *names = sys.argv[1:]
    setting = Setting(device, recipe, Path(work))
    for name in names:
        print(f"--- {name}", flush=True)
        began_file(Path(outcomes), name).write_text("")
        outcome = outcome_of(name, checks[name], setting)
        write_text_aside(outcome_file(Path(outcomes), name), json.dumps(asdict(outcome)))
        if outcome.status == "failed":
            return


def outcome_of(name: str, check: CheckFunction, setting: Setting) -> Outcome:
    """Whatever it raises is its outcome."""
    started = time.monotonic()
    try:
        found = check(setting)
    except SkippedError as reason:
        return Outcome(name, "skipped", time.monotonic() - started, str(reason))
    except BaseException as error:
        traceback.print_exc()
        kind = "" if isinstance(error, CheckError) else f"{type(error).__name__}: "
        return Outcome(name, "failed", time.monotonic() - started, f"{kind}{error}")
    seconds = time.monotonic() - started
    return Outcome(name, "passed", seconds, "", found.facts, found.speeds, found.tables)


def began_file(outcomes: Path, name: str) -> Path:
    """There as soon as a check has begun."""
    return outcomes / f"{_file_name(name)}.began"


def outcome_file(outcomes: Path, name: str) -> Path:
    """There when it is done."""
    return outcomes / f"{_file_name(name)}.json"


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


if __name__ == "__main__":
    from gpu.registry import CHECKS

    main(CHECKS)
