"""Where a checkpoint's catalogue comes from: shard folders, the thresholds beside the checkpoint, or itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimmad.checkpoint.folder import STATE_NAME
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.data.index import INDEX_NAME, load_index
from unimmad.data.location import DataFolder, recorded_data_folder
from unimmad.inference.catalogue import Catalogue


def checkpoint_catalogue(
    checkpoint: LoadedCheckpoint, data: Sequence[Path] | None, thresholds: Thresholds | None
) -> Catalogue:
    """Datasets and classes of a checkpoint.

    Args:
        checkpoint: a loaded one.
        data: shard folders given by the user, whose indexes alone are read; None takes the thresholds' datasets, or
            those that the checkpoint itself names, or (of older ones) those in the folders that it was trained on.
        thresholds: those beside the checkpoint.

    Raises:
        ValueError: a folder is none of shards, or nothing tells what the checkpoint was trained on.
    """
    if data is None and thresholds is not None:
        return Catalogue(thresholds.datasets, thresholds.trained_classes)
    trained_on = checkpoint.trained_on
    if data is None and trained_on is not None:
        return Catalogue(trained_on.datasets, trained_on.classes)
    state = str(checkpoint.folder / STATE_NAME)
    folders: Sequence[DataFolder] = data or [
        recorded_data_folder(text, state) for text in checkpoint.state.get("data", [])
    ]
    if not folders:
        raise ValueError(
            f"{checkpoint.folder} does not say which data it was trained on, and so not which modalities it knows; "
            "give a shard folder with --data DIR"
        )
    missing = [folder for folder in folders if not (isinstance(folder, Path) and (folder / INDEX_NAME).is_file())]
    if missing and data is None:
        raise ValueError(
            f"{checkpoint.folder} was trained on {', '.join(map(str, folders))}, and {missing[0]} is not here to say "
            "which modalities there are; give the shard folders with --data DIR, or calibrate where they are "
            "(unimmad calibrate)"
        )
    indexes = (load_index(folder) for folder in folders if isinstance(folder, Path))
    return Catalogue.of_indexes(indexes, None if trained_on is None else trained_on.datasets)
