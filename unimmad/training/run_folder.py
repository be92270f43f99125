"""Which folder a run writes to, and whether it continues one that is there."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, find_checkpoint, read_state
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import Recipe
from unimmad.config.loading import flat_settings
from unimmad.config.recipe import DEFAULT_METHOD
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.text import shown
from unimmad.training.arguments import TrainArguments

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""In a run folder."""
LOCK_NAME = "training.lock"
"""In a run folder, while a training goes on."""
_ANOTHER = "choose another --output-dir"


@dataclass(frozen=True)
class RunFolder:
    """Where to write, and the checkpoint to continue from, if any."""

    path: Path
    resume_from: Path | None


def choose_run_folder(wanted: Path, resume: str, recipe: Recipe) -> RunFolder:
    """Apply ``--resume auto|never|PATH`` to the output folder ``wanted``.

    ``auto`` continues an unfinished run of the same recipe; after a finished one it opens the next numbered folder
    (``demo-2``). ``never`` always opens a folder without checkpoints. A PATH is a run or checkpoint folder to continue.

    Raises:
        ValueError: PATH holds no checkpoint, the run to continue is of another recipe, or a folder can't be read.
    """
    if resume not in ("auto", "never"):
        checkpoint = find_checkpoint(Path(resume))
        check_same_recipe(checkpoint, recipe)
        return RunFolder(checkpoint.parent.parent, checkpoint)
    try:
        number, newest = _newest_of_series(wanted)
        checkpoint_or_none = CheckpointFolder(newest).newest()
    except OSError as error:
        raise ValueError(f"the run folder {wanted} can't be read ({error.strerror}); {_ANOTHER}") from None
    if checkpoint_or_none is None:
        return RunFolder(newest, None)
    if resume == "never" or read_state(checkpoint_or_none).get("finished"):
        fresh = wanted.with_name(f"{wanted.name}-{number + 1}")
        why = "is kept" if resume == "never" else "is finished"
        logger.info("%s %s: this run goes to %s", newest, why, fresh)
        return RunFolder(fresh, None)
    check_same_recipe(checkpoint_or_none, recipe)
    return RunFolder(newest, checkpoint_or_none)


def how_to_continue(resume: str) -> str:
    """What a user does after a stop, given what ``--resume`` was."""
    if resume == "never":
        return "the same command with --resume auto continues"
    if (Path(resume) / STATE_NAME).is_file():
        return f"the same command with --resume {Path(resume).parent.parent} continues"
    return "the same command continues"


def claim_run_folder(run: RunFolder, arguments: TrainArguments, trained_on: TrainedOn, lock: FolderLock) -> RunFolder:
    """Make the folder, and keep other trainings out of it by ``lock``.

    Returns:
        ``run``, or what there is to continue after waiting for this job's last start, which may have saved.

    Raises:
        ValueError: it can't be written to, or another training holds it.
    """
    make_run_folder(run.path)
    if not lock.take(run.path):
        return run
    again = choose_run_folder(arguments.output_dir, arguments.resume, arguments.recipe)
    if again.path != run.path:
        raise ValueError(f"{run.path} came to its end meanwhile; the same command trains again, in {again.path}")
    if again.resume_from is not None:
        check_same_data(again.resume_from, trained_on)
    return again


def make_run_folder(folder: Path) -> None:
    """
    Raises:
        ValueError: it can't be made, or not be written to.
    """
    try:
        (folder / TENSORBOARD).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"the run folder {folder} can't be written to ({error.strerror}); {_ANOTHER}") from None


def _defaults(recipe: Recipe) -> Recipe:
    """A recipe that says nothing but what it must."""
    needed = {name for name, field in type(recipe.model).model_fields.items() if field.is_required()}
    return type(recipe).model_validate({"name": "", "model": recipe.model.model_dump(include=needed)})


def check_same_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """
    Raises:
        ValueError: the checkpoint was trained with other settings; names them.
    """
    check_same_method(checkpoint, recipe)
    # A setting that is younger than the checkpoint had its default there.
    theirs = flat_settings(_defaults(recipe).model_dump(mode="json")) | flat_settings(read_state(checkpoint)["recipe"])
    ours = flat_settings(recipe.model_dump(mode="json"))
    different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    # How a run is watched, stored and read may change while it goes on; what it computes may not.
    different = [key for key in different if not key.startswith("evaluation.") and key not in _FREE]
    if different:
        first = different[0]
        raise ValueError(
            f"{checkpoint} is of another recipe: {first} is {theirs.get(first)!r} there and {ours.get(first)!r} now"
            f"{f' ({len(different)} settings differ)' if len(different) > 1 else ''}; "
            "use its recipe, another --output-dir, or --resume never"
        )


def check_same_method(checkpoint: Path, recipe: Recipe, also: str | None = None) -> None:
    """
    Raises:
        ValueError: the checkpoint is of another method than the recipe, and not of ``also``.
    """
    theirs = read_state(checkpoint)["recipe"].get("method", DEFAULT_METHOD)
    if theirs not in (recipe.method, also):
        raise ValueError(
            f"{checkpoint} is of method {shown(theirs)}, and recipe {recipe.name} of {recipe.method}: "
            "weights of another method can't be gone on with: use its recipe, or other weights or another --output-dir"
        )


def check_same_data(checkpoint: Path, given: TrainedOn) -> None:
    """By what the data hold, wherever they lie; an older checkpoint, which does not say it, passes.

    Raises:
        ValueError: the checkpoint was trained on other data; says what differs.
    """
    known = read_trained_on(read_state(checkpoint), str(checkpoint / STATE_NAME))
    if known is not None and (difference := known.difference(given)):
        raise ValueError(
            f"{checkpoint} was trained on other data: {difference}; give the run's own --data, another --output-dir, "
            "or --resume never (--init-from takes its weights to other data)"
        )


_FREE = {
    "data.workers",
    "model.search.max_bank_gb",
    "data.on_error",
    "data.cache_folder",
    "data.cache_gb",
    "data.resized_cache_gb",
    "training.activation_checkpointing",
    "training.channels_last",
    "training.compile",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
}


def _newest_of_series(wanted: Path) -> tuple[int, Path]:
    """The highest numbered of ``demo``, ``demo-2``, ``demo-3`` ... and its number; ``wanted`` where none is there."""
    series = [(1, wanted)]
    for path in wanted.parent.glob(f"{wanted.name}-*"):
        match = re.fullmatch(re.escape(wanted.name) + r"-(\d+)", path.name)
        if match:
            series.append((int(match[1]), path))
    return max(series)
