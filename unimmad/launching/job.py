"""What submitit runs in every task of a job: join the other ranks, train, and act on the signals that end a job."""

from __future__ import annotations

import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from submitit.helpers import DelayedSubmission

from unimmad.cpu_features import tune_cpu
from unimmad.training.stop_request import SLURM_SIGNALS, StopRequest

if TYPE_CHECKING:
    from unimmad.launching.task_env import Place
    from unimmad.parallel.world import World
    from unimmad.training.arguments import TrainArguments

LOCAL_REQUEUE_STATUS = 144
"""With it a task asks submitit's local controller to start all tasks again."""
END_WAIT_S = 1800
"""How long a rank that has saved waits for SLURM to end it."""


def done_mark(jobs_folder: Path, key: str) -> Path:
    """A file that is there once the job's training has come to its end."""
    return jobs_folder / f"{key}.done"


@dataclass(frozen=True)
class TrainingJob:
    """One training; its pickle holds words and paths only, and what is heavy is imported on the node."""

    argv: tuple[str, ...]
    """The trainer's."""
    jobs_folder: Path
    max_requeues: int
    ranks_a_node: int
    signal_delay_s: int
    key: str
    """Unlike a job id (locally, a process id) never used again."""

    def __call__(self) -> None:
        tune_cpu()  # before anything imports NumPy or PyTorch
        stop = StopRequest(SLURM_SIGNALS, self.signal_delay_s).listen()
        from unimmad.launching.run_record import RunRecord
        from unimmad.launching.task_env import Place

        place = Place.of_this_task(RunRecord(self.jobs_folder, self.key).starts())
        try:
            complete = self._train(place, stop)
        except BaseException as error:
            self._fail(place, error)
        if not complete:
            self._end_early(place, stop)
        stop.no_longer()
        from unimmad.parallel.world import leave_world
        from unimmad.serialization.atomic_write import write_text_aside

        leave_world()
        if place.rank == 0:
            write_text_aside(done_mark(self.jobs_folder, self.key), "")

    def checkpoint(self) -> DelayedSubmission:
        """submitit calls it at a signal before our handlers stand: nothing is lost yet; the same job starts again."""
        return DelayedSubmission(self)

    def _train(self, place: Place, stop: StopRequest) -> bool:
        """Whether training came to its end."""
        from unimmad.parallel.world import join_world
        from unimmad.ranks.launcher import log_from_main

        place.export()
        world = join_world()
        log_from_main(world.is_main)
        stop.has_failed_rank = world.has_failed_rank
        world.together(lambda: self._check_restarts(place))
        arguments = self._settle(place, world)
        if arguments is None:
            return True
        from unimmad.training.run import train

        return train(arguments, world, stop)

    def _check_restarts(self, place: Place) -> None:
        if place.restarts > self.max_requeues:
            raise ValueError(
                f"job {place.job_id} was started again {place.restarts} times, and --max-requeues is "
                f"{self.max_requeues}; the same command continues from the last checkpoint"
            )

    def _settle(self, place: Place, world: World) -> TrainArguments | None:
        """The trainer's arguments for this start of the job; None where its run is finished."""
        from unimmad.launching.run_record import RunRecord
        from unimmad.launching.task_env import check_neighbours, check_shared, describe_ranks, node_of_ranks
        from unimmad.parallel.deepspeed_config import read_deepspeed_config
        from unimmad.parallel.placement import effective_ep_size
        from unimmad.training.arguments import parse_arguments

        nodes = node_of_ranks(world, place)
        world.together(lambda: check_neighbours(nodes, self.ranks_a_node))
        check_shared(self.jobs_folder / f"{self.key}.{place.restarts}.seen", world, nodes)
        arguments = world.together(lambda: parse_arguments(self.argv))
        asked = world.together(lambda: read_deepspeed_config(arguments.deepspeed_config)).ep_size
        with warnings.catch_warnings():
            # The trainer will say it.
            warnings.simplefilter("ignore")
            ep_size = effective_ep_size(asked, world.size, arguments.recipe.model)
        if world.is_main:
            started = f"start {place.restarts + 1} of job {place.job_id}: {describe_ranks(nodes, ep_size)}"
            print(started, file=sys.stderr, flush=True)
        return RunRecord(self.jobs_folder, self.key).settle(arguments, world)

    def _fail(self, place: Place, error: BaseException) -> NoReturn:
        """Tell, and leave without clean-up: other ranks may wait for this one, and SLURM ends them."""
        from unimmad.launching.failure_notes import note_failures
        from unimmad.ranks.errors import exit_status, tell
        from unimmad.ranks.exchange import wait_until_told
        from unimmad.training.arguments import TRAINER

        tell(error, place.rank, place.size, TRAINER)
        note_failures(self.jobs_folder, self.key, place.restarts, place.rank, error)
        wait_until_told(error, place.rank, place.size)
        os._exit(exit_status(error))

    def _end_early(self, place: Place, stop: StopRequest) -> NoReturn:
        """All ranks have saved. Rank 0 requeues the job where that is ours to do; everybody waits to be ended."""
        if place.cluster == "local":
            os._exit(LOCAL_REQUEUE_STATUS if stop.to_requeue() else 1)
        deadline = time.monotonic() + END_WAIT_S
        while time.monotonic() < deadline:
            if place.rank == 0 and stop.to_requeue():
                self._requeue(place)
            time.sleep(0.2)
        os._exit(1)

    def _requeue(self, place: Place) -> NoReturn:
        from unimmad.launching.slurm_commands import requeue

        continues = "the same command continues from the last checkpoint"
        if place.restarts >= self.max_requeues:
            used_up = f"saved, but not requeued: --max-requeues {self.max_requeues} is used up; {continues}"
            self._fail(place, ValueError(used_up))
        try:
            requeue(place.job_id)
        except ValueError as error:
            self._fail(place, ValueError(f"saved, but not requeued ({error}); {continues}"))
        print(f"job {place.job_id} goes back into the queue", file=sys.stderr, flush=True)
        # All are to leave now: SLURM gives tasks that stay the time of KillWait.
        os._exit(1)
