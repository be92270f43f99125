"""Whether two modalities of a sample show the same place (data/edges.py), as a fact of an audit."""

from __future__ import annotations

from numpy.typing import NDArray

from unimmad.audit.facts import PairFacts
from unimmad.data.edges import overlap


def compare_edges(first: str, first_edges: NDArray, second: str, second_edges: NDArray) -> PairFacts:
    """How the edges of two modalities, from ``data.edges.edges``, lie over each other."""
    return PairFacts(first=first, second=second, **overlap(first_edges, second_edges)._asdict())
