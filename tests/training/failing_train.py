"""The training command with a fault: rank FAILING_RANK raises in its second step. Started by tests.

It writes the time into failed.json; rank WAITING_RANK waits in that step for what never comes.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from unimmad import train
from unimmad.training import loop
from unimmad.training.micro_step import micro_step

calls = 0


def fail_in_second(*arguments):
    global calls
    calls += 1
    if calls == 2 and os.environ["RANK"] == os.environ.get("WAITING_RANK"):
        time.sleep(1000)
    if calls == 2 and os.environ["RANK"] == os.environ["FAILING_RANK"]:
        Path("failed.json").write_text(json.dumps(time.time()))
        raise RuntimeError("the fault of the test")
    return micro_step(*arguments)


loop.micro_step = fail_in_second
sys.exit(train.main())
