"""One SLURM cluster for all tests that need a real one."""

from collections.abc import Iterator

import pytest
from cluster import LocalCluster, missing


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
