"""What the nodes of a large cluster would read: the real training order, played through for one epoch without data.

Of one node everything is followed: which shards its ranks draw from, and what a cache of whole shards would fetch for
them. Sizes and rates are assumptions and options; only the time to read an index is measured, on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from dataclasses import dataclass

from unimmad.data.index import DatasetEntry, Index, Member, Modality, SampleEntry, ShardEntry, parse_index
from unimmad.data.reading.order import TrainingOrder

HELP = "what a large cluster's nodes would read: shards, bytes a second, start-up"
MB = 10**6
INDEX_SAMPLES = 2000
"""Of the index whose reading is timed."""

Drawn = tuple[int, int]
"""A sample: the number of its class, and of its shard."""


@dataclass(frozen=True)
class Collection:
    """Training data of some size; classes are equally large and lie in shards one after another."""

    name: str
    classes: int
    samples: int
    sample_mb: float
    """All modalities of a sample together, encoded."""

    @property
    def gigabytes(self) -> float:
        return self.samples * self.sample_mb / 1000


COLLECTIONS = (
    Collection("the paper's nine sets", classes=66, samples=41_000, sample_mb=0.7),
    Collection("ten times as many classes", classes=660, samples=410_000, sample_mb=0.7),
    Collection("25 times the samples", classes=660, samples=1_025_000, sample_mb=0.7),
)
"""The first one's figures are the published numbers of training images, and a guess of their mean size."""


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines and the run."""

    nodes: int
    ranks: int
    """Of a node."""
    rank_batch: int
    rank_rate: float
    """Samples a second that one rank trains."""
    shard_mb: float
    cache_gb: float
    link_gbit: float
    """A node's way to where the shards are."""

    @property
    def node_batch(self) -> int:
        return self.ranks * self.rank_batch

    @property
    def link_mb(self) -> float:
        """MB a second."""
        return self.link_gbit * 1000 / 8


@dataclass(frozen=True)
class NodeReads:
    """One node in one epoch."""

    steps: int
    shards: int
    """Of the whole collection."""
    of_rank: int
    """Shards that the node's first rank draws from."""
    of_node: int
    first_batch: int
    """Shards that the node's first batch lies in."""
    fetched: int
    """Shards fetched in an epoch by a cache that has seen all of them before."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=64, help="of the cluster (default: 64)")
    parser.add_argument("--ranks", type=int, default=8, help="of each node")
    parser.add_argument("--rank-batch", type=int, default=2, help="samples of a rank in one step")
    parser.add_argument("--rank-rate", type=float, default=20.0, help="samples a second that a rank trains")
    parser.add_argument("--shard-mb", type=float, default=64.0, help="size of a shard (default: 64)")
    parser.add_argument("--cache-gb", type=float, default=50.0, help="the setting data.cache_gb")
    parser.add_argument("--link-gbit", type=float, default=25.0, help="each node's way to the shards")


def run(arguments: argparse.Namespace) -> str:
    """Play all collections through and give the table.

    Raises:
        ValueError: a number that is not positive.
    """
    cluster = Cluster(**{name: getattr(arguments, name) for name in Cluster.__dataclass_fields__})
    if min(vars(cluster).values()) <= 0:
        raise ValueError("every number of the cluster must be positive")
    index_seconds, index_bytes = index_cost(INDEX_SAMPLES)
    lines = [
        f"{cluster.nodes} nodes x {cluster.ranks} ranks, {cluster.rank_batch} samples a rank and step, "
        f"{cluster.rank_rate:g} samples/s a rank, shards of {cluster.shard_mb:g} MB",
        "",
        "| data | GB | shards | shards a rank / node draws from in an epoch | in place: MB/s a node | "
        f"URLs, cache of {cluster.cache_gb:g} GB: MB/s a node | of {cluster.link_gbit:g} Gbit/s | "
        "index: MB, s | first batch from URLs, s |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for collection in COLLECTIONS:
        reads = node_reads(collection, cluster)
        seconds = reads.steps * cluster.rank_batch / cluster.rank_rate
        in_place = cluster.ranks * cluster.rank_rate * collection.sample_mb
        fetched = reads.fetched * cluster.shard_mb / seconds
        lines.append(
            f"| {collection.name} | {collection.gigabytes:.0f} | {reads.shards} | {reads.of_rank} / {reads.of_node} | "
            f"{in_place:.0f} | {fetched:.0f} | {fetched / cluster.link_mb:.0%} | "
            f"{collection.samples * index_bytes / MB:.0f}, {collection.samples * index_seconds:.1f} | "
            f"{reads.first_batch * cluster.shard_mb / cluster.link_mb:.1f} |"
        )
    return "\n".join(lines)


def node_reads(collection: Collection, cluster: Cluster) -> NodeReads:
    """Follow the first node through an epoch.

    Raises:
        ValueError: the collection has fewer samples than one step takes.
    """
    batch = cluster.nodes * cluster.node_batch
    if collection.samples < batch:
        raise ValueError(f"{collection.name}: {collection.samples} samples do not fill one step of {batch}")
    classes = _classes(collection, cluster.shard_mb)
    order = TrainingOrder(classes, lambda drawn: drawn[1], seed=0, batch=batch)
    epoch = [order.at(step)[: cluster.node_batch] for step in range(order.steps_per_epoch)]
    shards = sorted({shard for drawn in classes.values() for _, shard in drawn})
    cache = ShardLru(int(cluster.cache_gb * 1000 / cluster.shard_mb))
    for shard in shards:
        cache.misses(shard)
    return NodeReads(
        steps=order.steps_per_epoch,
        shards=len(shards),
        of_rank=len({shard for of_step in epoch for _, shard in of_step[: cluster.rank_batch]}),
        of_node=len({shard for of_step in epoch for _, shard in of_step}),
        first_batch=len({shard for _, shard in epoch[0]}),
        fetched=sum(cache.misses(shard) for of_step in epoch for _, shard in of_step),
    )


def _classes(collection: Collection, shard_mb: float) -> dict[str, list[Drawn]]:
    of_shard = max(1, int(shard_mb / collection.sample_mb))
    classes: dict[str, list[Drawn]] = {}
    for sample in range(collection.samples):
        number = sample * collection.classes // collection.samples
        classes.setdefault(f"{number:06d}", []).append((number, sample // of_shard))
    return classes


class ShardLru:
    """A cache of whole shards that forgets the least recently read one."""

    def __init__(self, shards: int) -> None:
        self.room = max(1, shards)
        self._kept: OrderedDict[int, None] = OrderedDict()

    def misses(self, shard: int) -> bool:
        """Read a shard; whether it had to be fetched."""
        missing = shard not in self._kept
        self._kept[shard] = None
        self._kept.move_to_end(shard)
        if len(self._kept) > self.room:
            self._kept.popitem(last=False)
        return missing


def index_cost(samples: int) -> tuple[float, float]:
    """CPU seconds and bytes of an index, each for one sample (of two modalities)."""
    modalities = tuple(Modality(name=name, slot=slot, kind="gray") for slot, name in enumerate(("rgb", "depth")))
    index = Index(
        source="made for a measurement",
        datasets={"made": DatasetEntry(field="industry", modalities=modalities)},
        shards=(ShardEntry(name="train-000000.tar", bytes=samples * 10**6, sha256="0" * 64, samples=samples),),
        samples=tuple(_sample(number) for number in range(samples)),
    )
    data = index.model_dump_json(indent=1).encode()
    start = time.process_time()
    parse_index(data, "made index")
    return (time.process_time() - start) / samples, len(data) / samples


def _sample(number: int) -> SampleEntry:
    key = f"bagel-train-good-{number:06d}"
    images = {
        name: Member(name=f"made/{key}.{slot}.png", offset=number * 10**6 + slot * 2 * 10**5, length=10**5)
        for slot, name in enumerate(("rgb", "depth"))
    }
    return SampleEntry(
        key=key,
        dataset="made",
        class_name="bagel",
        split="train",
        defect="good",
        anomalous=False,
        shard=0,
        images=images,
    )
