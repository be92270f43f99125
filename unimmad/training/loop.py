"""The training loop: batches through the engine, with logs, evaluations and checkpoints on the way."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import SkipLog, summary
from unimmad.data.reading.stream import training_batches
from unimmad.data.sample import Batch
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.geometry import training_geometry
from unimmad.model.method import Fitted
from unimmad.parallel.engine import Engine
from unimmad.ranks.errors import SharedError, StoppedError
from unimmad.serialization.folder_lock import FolderLock
from unimmad.training.checkpointing import RunFacts, save_checkpoint
from unimmad.training.feature_cache import FeatureCache
from unimmad.training.fitting import show_samples
from unimmad.training.growth import GrowingData
from unimmad.training.micro_step import LossGuard, micro_step
from unimmad.training.profiling import profiling
from unimmad.training.run_log import RunLog
from unimmad.training.schedule import Schedule
from unimmad.training.stop_request import StopPoll, StopRequest

logger = logging.getLogger(__name__)


class Trainer:
    """A run's moving parts; ``run`` moves them."""

    def __init__(
        self,
        engine: Engine,
        shards: ShardSet,
        order: TrainingOrder[SampleRef],
        schedule: Schedule,
        checkpoints: CheckpointFolder,
        facts: RunFacts,
        lock: FolderLock,
        stop: StopRequest | None = None,
        profile: range | None = None,
        features: FeatureCache | None = None,
        growing: GrowingData | None = None,
    ) -> None:
        self.engine = engine
        self.shards = shards
        self.order = order
        self.schedule = schedule
        self.checkpoints = checkpoints
        self.facts = facts
        self.lock = lock
        """Of the run folder; rank 0 holds it."""
        self.stop = stop
        """Where some rank got a signal, all save and stop at the end of a step. Where None, nobody asks."""
        self.profile = profile
        """Steps whose trace is written, counted from 1."""
        self.features = features
        """Where the teacher's are kept; it is attached to the model."""
        self.growing = growing
        """Where the run grows out of another checkpoint: it is not finished by its last step, but by a review."""
        self.settings = facts.recipe.training
        self.skip_log = SkipLog("another sample takes its place")
        self._started = time.monotonic()

    def run(self, start: int, max_steps: int | None) -> bool:
        """Train from step ``start`` to the end of the schedule, or to ``max_steps``.

        Returns:
            Whether it came there; False where ``stop`` ended it after some step's checkpoint.

        Raises:
            ValueError: a sample can't be read, loss or weights are not finite, or a checkpoint can't be written.
        """
        total = self.schedule.total_steps
        end = total if max_steps is None else min(total, max_steps)
        if start >= end:
            if self._is_to_be_fitted():
                self._fit(start, total)
            else:
                logger.info("%s is at step %d already: nothing to do", self.checkpoints.run, start)
            return True
        guard = LossGuard(self.engine)
        if self.stop is not None:
            self.stop.training = True
        run, world = self.checkpoints.run, self.engine.world
        poll = StopPoll(self.stop, world)
        # Closed here: whatever refers to this frame afterwards would keep its loader processes.
        with (
            contextlib.closing(self._batches(start, end)) as batches,
            RunLog(run, world, self.facts.recipe, self.engine.model, start, end) as log,
            profiling(self.profile, run, world, start, end, log.message) as step_is_done,
        ):
            for step in range(start, end):
                rate = self.schedule.learning_rate(step)
                self.engine.set_learning_rate(rate)
                self.engine.gradient_norm.wanted = log.due(step + 1)
                for part in range(self.settings.accumulation):
                    self._seed(step, part)
                    with log.waiting_for_data():
                        batch = next(batches)
                    kept = contextlib.nullcontext() if self.features is None else self.features.of(batch)
                    with log.counting_operations(), kept:
                        output, loss = micro_step(
                            self.engine, batch, self._weights(batch), self.settings, step, self.schedule.epoch(step)
                        )
                    guard.watch(step, loss.total)
                    log.add(output, loss, len(batch.images_TCHW), self.engine.take_traffic())
                if log.due(step + 1):
                    self._stop_if_not_finite(guard)
                log.step(step + 1, rate, lambda: self.engine.gradient_norm.share(self.engine.deepspeed))
                step_is_done()
                stopping = poll.after_step()
                with log.besides():
                    if not self._after_step(step + 1, end, total, guard, log, stopping):
                        stopping = poll.ask()
                if stopping and step + 1 < end:
                    log.message(f"step {step + 1}: asked to stop")
                    return False
            if skipped := summary(self._skipped()):
                log.message(f"{skipped}; others took their places")
        return True

    def _skipped(self) -> Counter[str]:
        """Corrupt samples by shard, of all ranks."""
        return sum(self.engine.world.ranks.gather(Counter(self.skip_log.shards)), Counter())

    def _batches(self, start: int, end: int) -> Generator[Batch, None, None]:
        world, accumulation = self.engine.world, self.settings.accumulation
        stream = training_batches(
            self.shards,
            self.order,
            image_size=self.facts.recipe.model.image_size,
            rank=world.rank,
            world_size=world.size,
            workers=self.facts.recipe.data.workers,
            start_step=start * accumulation,
            end_step=end * accumulation,
            on_error=self.facts.recipe.data.on_error,
            skip_log=self.skip_log,
            modality_dropout=self.facts.recipe.data.modality_dropout,
            drawn_share=self.settings.drawn_share,
            geometry=training_geometry(self.facts.recipe),
        )
        for _, batch in stream:
            yield batch

    def _seed(self, step: int, part: int) -> None:
        """Random numbers of dropout and noise are a function of seed, step and rank: a resumed run draws the same."""
        words = (self.settings.seed, step, part, self.engine.world.rank)
        torch.manual_seed(int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little") >> 1)

    def _weights(self, batch: Batch) -> Tensor:
        """Loss weight of each token: its sample's dataset's."""
        weights = self.facts.recipe.data.dataset_weights
        return torch.tensor(
            [weights.get(sample.dataset, 1.0) for sample in batch.samples for _ in sample.slots], dtype=torch.float32
        )

    def _stop_if_not_finite(self, guard: LossGuard) -> None:
        step = guard.first_bad_step()
        if step is None:
            return
        accumulation = self.settings.accumulation
        drawn = [ref for part in range(accumulation) for ref in self.order.at(step * accumulation + part)]
        classes = ", ".join(sorted({ref.class_name for ref in drawn}))
        raise SharedError.of_all(
            f"the loss of step {step + 1} is not finite (classes in its batch: {classes}); {self._way_out()}",
            self.engine.world.size,
        )

    def _way_out(self) -> str:
        newest: Path | None = None
        with contextlib.suppress(OSError):
            newest = self.checkpoints.newest()
        return f"the last good checkpoint is {newest or 'none'}; try a smaller training.learning_rate"

    def _after_step(self, step: int, end: int, total: int, guard: LossGuard, log: RunLog, stopping: bool) -> bool:
        """Checkpoint and evaluate where their turn has come; ``step`` steps are done.

        Returns:
            Whether no signal stopped the evaluation.
        """
        evaluate = self.settings.evaluate_every and step % self.settings.evaluate_every == 0
        if not (evaluate or stopping or step == end or step % self.settings.checkpoint_every == 0):
            return True
        self._stop_if_not_finite(guard)
        if not guard.weights_are_finite():
            problem = (
                f"a weight, running statistic or optimizer state is NaN or infinite after step {step}; "
                f"{self._way_out()}"
            )
            raise SharedError.of_all(problem, self.engine.world.size)
        path = self._save(step, total)
        log.message(f"step {step}: checkpoint {path}")
        if step == end and self._is_to_be_fitted():
            path = self._fit(step, total)
        if evaluate and (step == end or not stopping):
            return self._evaluate(path, step, log)
        return True

    def _save(self, step: int, total: int) -> Path:
        self.engine.world.on_main(self.lock.check)
        seconds = self.facts.seconds + time.monotonic() - self._started
        finished = step == total and self.growing is None
        return save_checkpoint(self.checkpoints, self.engine, self.facts, step, finished, seconds)

    def _is_to_be_fitted(self) -> bool:
        """On every rank alike: whatever it is fitted to already, in a run that is continued, is the same data."""
        model = self.engine.model
        if not isinstance(model, Fitted):
            return False
        new = () if self.growing is None else self.growing.new
        return not (model.is_fitted and all(map(model.is_fitted_to, new)))

    def _fit(self, step: int, total: int) -> Path:
        """The checkpoint of ``step`` is there already, where there are steps: whatever stops the fitting loses none."""
        shards = self.shards if self.growing is None else self.growing.of_new()
        adding = self.growing is not None
        show_samples(cast(Fitted, self.engine.model), shards, self.facts.recipe, self.engine.world, adding)
        return self._save(step, total)

    def _evaluate(self, checkpoint: Path, step: int, log: RunLog) -> bool:
        """The checkpoint just written, in its local form on every rank; they share the test split.

        Returns:
            Whether it came to its end: a signal stops it.
        """
        folder = self.checkpoints.run / "evaluations" / f"step_{step:08d}"
        world, data = self.engine.world, self.facts.recipe.data
        ranks = replace(world.ranks, should_stop=lambda: self.stop is not None and self.stop.first != 0)
        torch.cuda.empty_cache()  # the model to evaluate needs room beside the one in training
        try:
            with ranks.together():
                evaluation = evaluate_checkpoint(
                    load_checkpoint(checkpoint, verify=False, methods=self.facts.methods),  # it was just written
                    self.shards.folders if self.growing is None else self.growing.recorded,
                    folder,
                    cache=self.shards.cache,
                    on_error=data.on_error,
                    device=world.device,
                    workers=data.workers,
                    progress=False,
                    ranks=ranks,
                )
        except StoppedError:
            log.message(f"step {step}: asked to stop; unimmad evaluate --checkpoint {checkpoint} makes its report")
            return False
        finally:
            torch.cuda.empty_cache()
        if evaluation is not None:
            log.evaluation(step, evaluation)
        return True
