"""On the nodes of a test: slows every step down, and makes a rank fail. Python imports it at its start."""

import os
import sys
import time


def _disturb() -> None:
    from unimmad.training import loop
    from unimmad.training.micro_step import micro_step

    calls = 0

    def disturbed(*arguments):
        nonlocal calls
        calls += 1
        time.sleep(float(os.environ.get("TEST_STEP_SECONDS", "0")))
        if calls == 2 and os.environ["RANK"] == os.environ.get("TEST_FAILING_RANK"):
            raise RuntimeError("the fault of the test")
        return micro_step(*arguments)

    loop.micro_step = disturbed


if "submitit.core._submit" in sys.orig_argv:
    _disturb()
