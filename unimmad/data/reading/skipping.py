"""What ``--on-error skip`` passed over: counted, logged once a shard, summed up at the end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

OnError = Literal["stop", "skip"]
SHARDS_NAMED = 5
"""How many shards the summary names."""


@dataclass(frozen=True)
class Skipped:
    """One sample that could not be read when its turn came."""

    shard: str
    message: str
    """Names the shard and the member, and says what is wrong."""


class SkipLog:
    """Counts what one process's stream skipped.

    Args:
        consequence: what became of the sample's place, for the log.
    """

    def __init__(self, consequence: str) -> None:
        self.consequence = consequence
        self.shards: Counter[str] = Counter()

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Count; the first of each shard is logged, as an error so that ranks other than the first show it too."""
        for one in skipped:
            if one.shard not in self.shards:
                logger.error("%s; %s (further ones of this shard are counted only)", one.message, self.consequence)
            self.shards[one.shard] += 1

    @property
    def total(self) -> int:
        return self.shards.total()


def summary(shards: Mapping[str, int]) -> str:
    """One line on what was skipped, by shard; counts of several processes may be added up before.

    Empty where nothing was; the same whatever the order in which shards were met.
    """
    if not shards:
        return ""
    worst = sorted(shards.items(), key=lambda item: (-item[1], item[0]))[:SHARDS_NAMED]
    named = ", ".join(f"{shard} ({count})" for shard, count in worst)
    more = f" and {len(shards) - len(worst)} more" if len(shards) > len(worst) else ""
    return f"{sum(shards.values())} samples could not be read, in {len(shards)} shards: {named}{more}"
