"""An older checkpoint names the folders that tell its modalities: only paths that are here are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.inference.catalogue_sources import checkpoint_catalogue


def checkpoint(*data: Any) -> LoadedCheckpoint:
    """One that does not say what it was trained on."""
    found = SimpleNamespace(folder=Path("run/step"), trained_on=None, state={"data": list(data)})
    return cast(LoadedCheckpoint, found)


def test_a_url_is_not_opened():
    with pytest.raises(ValueError, match="was trained on https://host/set, and https://host/set is not here"):
        checkpoint_catalogue(checkpoint("https://host/set"), None, None)


@pytest.mark.parametrize("text", ["reference://::file:///refs.json", "pipe:touch {}", "file:///set"])
def test_what_only_a_user_may_name_is_refused(text):
    with pytest.raises(ValueError, match=r"state\.json names .* with --data"):
        checkpoint_catalogue(checkpoint(text), None, None)


def test_folders_that_the_user_gives_are_taken_whatever_it_names(parity_shards):
    given = checkpoint_catalogue(checkpoint("pipe:touch {}"), [parity_shards], None)
    assert given.datasets
