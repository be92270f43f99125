"""The synthetic set where every command looks for it by default."""

from __future__ import annotations

import logging
from pathlib import Path

from unimmad.data.index import INDEX_NAME
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards

logger = logging.getLogger(__name__)

SYNTHETIC_FOLDER = Path("data/synthetic")


def ensure_synthetic_shards(folder: Path = SYNTHETIC_FOLDER) -> Path:
    """Draw the synthetic set into ``folder`` unless it is there.

    Raises:
        ValueError: the folder exists and is something else, or can't be written.
    """
    if not (folder / INDEX_NAME).is_file():
        logger.info("drawing the synthetic dataset into %s", folder)
        write_shards(synthetic_sets(), folder)
    return folder
