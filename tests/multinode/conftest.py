"""A Ray cluster on a head and three workers, each a host with a network of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Run, laptop  # noqa: F401
from tests.multinode import hosts, pipeline
from tests.multinode.cluster import Cluster
from tests.multinode.hosts import Host, awaited

Say = Callable[[str], None]


@pytest.fixture(scope="session")
def network() -> Iterator[Path]:
    """The directory in which hosts of one network are made."""
    why = hosts.unavailable()
    if why is not None:
        pytest.skip(why)
    with hosts.network() as base:
        yield base


@pytest.fixture(scope="session")
def cluster(network: Path) -> Iterator[Cluster]:
    """A cluster whose hosts are switched on and off by the tests."""
    made = Cluster(network, "one", "two", "three")
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def here(laptop: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The pipeline's run on one machine without a cluster."""
    out = tmp_path_factory.mktemp("laptop") / "run"
    done = laptop("raycrt", "demo", "--out", str(out), *pipeline.options())
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def stranger(cluster: Cluster) -> Iterator[Host]:
    """A host without a token on the network of the cluster, which runs on two workers."""
    cluster.up("one", "two")
    cluster.outside.start("sh", "-c", "echo ready; exec sleep infinity")
    awaited("the stranger", lambda: "ready" in cluster.outside.said())
    yield cluster.outside
    cluster.outside.kill()


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Say:
    """Prints a line that is seen whether or not the test fails."""

    def out(line: str) -> None:
        with capfd.disabled():
            print(f"\n{request.node.name}: {line}", flush=True)

    return out
