"""The simulated cluster: its counts, and where a cache is too small."""

import argparse
import re

import pytest

from benchmarks import scaling
from benchmarks.scaling import Cluster, Collection, ShardLru, index_cost, node_reads

SMALL = Collection("small", classes=4, samples=800, sample_mb=1.0)


def cluster(**changes: float) -> Cluster:
    values = {"nodes": 2, "ranks": 4, "rank_batch": 1, "rank_rate": 20.0, "shard_mb": 10.0, "cache_gb": 1.0}
    return Cluster(**{**values, "link_gbit": 25.0, **changes})  # type: ignore[arg-type]


def test_a_node_draws_from_nearly_all_shards_and_a_rank_from_fewer() -> None:
    reads = node_reads(SMALL, cluster())
    assert (reads.steps, reads.shards) == (100, 80)
    # A node draws 400 times of 80 shards, about 5 times of each; a rank 100 times.
    assert 75 <= reads.of_node <= 80
    assert 45 <= reads.of_rank <= 65
    assert 2 <= reads.first_batch <= 4


def test_one_node_sees_everything_that_an_epoch_draws() -> None:
    alone = node_reads(Collection("small", classes=1, samples=800, sample_mb=1.0), cluster(nodes=1))
    assert alone.of_node == alone.shards == 80


def test_a_cache_that_holds_all_fetches_nothing_again_and_a_small_one_does() -> None:
    assert node_reads(SMALL, cluster(cache_gb=0.8)).fetched == 0
    some, most = (node_reads(SMALL, cluster(cache_gb=size)).fetched for size in (0.4, 0.1))
    assert 0 < some < most <= 400


def test_the_least_recently_read_makes_room() -> None:
    cache = ShardLru(2)
    assert [cache.misses(shard) for shard in (1, 2, 1, 3, 1, 2)] == [True, True, False, True, False, True]


def test_a_collection_that_fills_no_step() -> None:
    with pytest.raises(ValueError, match="800 samples do not fill one step of 1024"):
        node_reads(SMALL, cluster(nodes=256))


def test_an_index_costs_bytes_and_time() -> None:
    seconds, size = index_cost(50)
    assert seconds > 0
    assert 300 < size < 1000


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "COLLECTIONS", (SMALL, SMALL))
    parser = argparse.ArgumentParser()
    scaling.add_arguments(parser)
    table = scaling.run(parser.parse_args(["--nodes", "2"]))
    assert len(re.findall(r"^\| small \| 1 \| 13 \| \d+ / \d+ \| 160 \|", table, re.MULTILINE)) == 2
    with pytest.raises(ValueError, match="must be positive"):
        scaling.run(parser.parse_args(["--rank-rate", "0"]))
