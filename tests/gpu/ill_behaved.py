"""Checks that pass, fail, are skipped, die and hang: what ``running`` makes of them is tested."""

from __future__ import annotations

import os
import time

from gpu.check import CheckError, Found, Setting, SkippedError
from gpu.worker import main


def passes(_: Setting) -> Found:
    return Found({"process": os.getpid()})


def fails(_: Setting) -> Found:
    raise CheckError("2 is not 3")


def breaks(_: Setting) -> Found:
    return Found({"nothing": 1 // 0})


def is_skipped(_: Setting) -> Found:
    raise SkippedError("needs a moon")


def dies(_: Setting) -> Found:
    os._exit(7)


def hangs(_: Setting) -> Found:
    time.sleep(600)
    return Found({})


if __name__ == "__main__":
    kinds = {"passes": passes, "fails": fails, "breaks": breaks, "is skipped": is_skipped, "dies": dies, "hangs": hangs}
    main({**kinds, "passes again": passes, "passes at last": passes})
