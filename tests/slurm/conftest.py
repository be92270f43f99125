"""One SLURM cluster for all tests that need a real one."""

from collections.abc import Iterator

import pytest
from cluster import LocalCluster, missing
from submitting import NODES, STEPS, Submission, submit, trainer_argv


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    """Four nodes; skips, with the reason, where there can be none."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    # A controller and munge want folders that others may enter.
    folder.chmod(0o755)
    started = LocalCluster(folder / "cluster")
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def undisturbed(cluster, parity_shards, tmp_path_factory) -> Submission:
    """A submission on two nodes that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    submission = submit(cluster, output, NODES, trainer_argv(parity_shards, "--max-steps", str(STEPS)))
    assert submission.end() == 0, submission.everything()
    return submission
