"""The training command, which writes down what each rank draws. Started by tests.

Rank r appends a line ``[step, [[DATASET/KEY, [SLOT, ...]], ...]]`` to RECORD_FOLDER/r.jsonl as it takes each batch.
With HOLD_AT_STEP=n it stays before step n until it is killed, and says so by r.held. With INTERRUPT_EVALUATION=r rank r
sends itself TERM as it scores its first batch of an evaluation.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from unimmad import train
from unimmad.data.reading.stream import training_batches
from unimmad.evaluation import run as evaluation
from unimmad.evaluation.tiling import score_samples
from unimmad.training import loop


def recorded_batches(*arguments, **options):
    hold = int(os.environ.get("HOLD_AT_STEP", "-1"))
    record = Path(os.environ["RECORD_FOLDER"]) / f"{os.environ.get('RANK', '0')}.jsonl"
    with record.open("a", buffering=1) as lines:
        for step, batch in training_batches(*arguments, **options):
            while step == hold:
                record.with_suffix(".held").touch()
                time.sleep(1)
            drawn = [[f"{sample.dataset}/{sample.key}", list(sample.slots)] for sample in batch.samples]
            lines.write(json.dumps([step, drawn]) + "\n")
            yield step, batch


def interrupted_scoring(*arguments, **options):
    if evaluation.score_samples is interrupted_scoring:
        evaluation.score_samples = score_samples
        os.kill(os.getpid(), signal.SIGTERM)  # a shell may have its background commands ignore INT
        time.sleep(1)  # another thread hears it
    return score_samples(*arguments, **options)


if __name__ == "__main__":  # loader workers import this file, too
    loop.training_batches = recorded_batches
    if os.environ.get("INTERRUPT_EVALUATION") == os.environ.get("RANK", "0"):
        evaluation.score_samples = interrupted_scoring
    sys.exit(train.main())
