"""The section ``data``: how shards are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unimmad.config.fields import Integer, Real, Section


class DataSettings(Section):
    """How shards are read."""

    workers: Annotated[Integer, Field(ge=0, le=256)] = 2
    """Loader processes of each rank; 0 decodes in the trainer itself."""
    dataset_weights: dict[str, Annotated[Real, Field(ge=1e-6, le=1e6)]] = Field(default={})
    """Loss weight of each dataset, by its name; others weigh 1. A name that is not among the data is an error, unless
    a shipped recipe has it."""
    sampling: Literal["balanced", "natural"] = "balanced"
    """``balanced``: every class equally likely at each draw, with replacement (the paper). ``natural``: every sample
    once an epoch."""
    aspect: Literal["stretch", "letterbox", "crop"] = "stretch"
    """How images that are not square become so, in training and scoring: ``stretch`` resizes them to a square (the
    paper); ``letterbox`` keeps their aspect and fills up with the mean colour; ``crop`` takes their middle square and
    sees nothing of the rest."""
    modality_dropout: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Probability that a modality of a training sample is left out, so that the model learns to do without each sensor
    (not in the paper); at least one stays."""
    on_error: Literal["stop", "skip"] = "stop"
    """A corrupt sample ends the training (``stop``), or another takes its place; the end of the run tells how often."""
    cache_folder: str = ""
    """Where shards from URLs are kept, shared by all processes of a node; empty: in ``$SLURM_TMPDIR``, else
    ``$TMPDIR``, which are the node's own, else ``$XDG_CACHE_HOME/unimmad`` or ``~/.cache/unimmad``."""
    cache_gb: Annotated[Real, Field(ge=1e-9, le=1e9)] = 50.0
    """Most that ``cache_folder`` may hold, in 10^9 bytes; the least recently read shards make room.
    What the node's loader processes fetch at the same time is kept even where it is more."""
    feature_cache_gb: Annotated[Real, Field(ge=0, le=1e9)] = 0.0
    """Most that a frozen teacher's features may take there, in 10^9 bytes for each state of data and teacher, so that
    a training image goes through it once and not once an epoch; 0 keeps none. Each image then goes through it alone,
    which differs from a batch in rounding."""
    resized_cache_gb: Annotated[Real, Field(ge=0, le=1e9)] = 0.0
    """Most that resized training images may take in ``cache_folder``, in 10^9 bytes, so that a node decodes each once
    and not once an epoch; 0 keeps none."""
