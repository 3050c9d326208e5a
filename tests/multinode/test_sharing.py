"""Several jobs on one cluster: none waits for ever, and each has the results that it has alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from raycrt.specs import Spec
from tests.chaos import harness
from tests.cluster.conftest import Run
from tests.multinode.cluster import TEAM, Cluster
from tests.multinode.conftest import Say
from tests.multinode.hosts import awaited
from tests.multinode.pipeline import SUBMIT
from tests.multinode.test_search import options, trials

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(560)]

SEARCHES = {
    "single": options(search__trials=3, train__epochs=40, search__rungs=[20]),
    "pairs": options(search__trials=2, train__epochs=40, search__rungs=[20], search__workers=2),
}
WORKERS = ("one", "two", "three")


@pytest.fixture(autouse=True)
def fresh(cluster: Cluster) -> Iterator[None]:
    """A cluster of three workers that knows of no earlier job."""
    with cluster.anew():
        cluster.up(*WORKERS)
        yield


def test_three_jobs_at_once_end_as_each_does_alone(
    cluster: Cluster, laptop: Run, tmp_path: Path, say: Say
) -> None:
    home = cluster.shared / "together"
    harness.prepared(home)
    jobs = {
        "certify": ("certify", "--out", str(home / "run")),
        **{name: ("search", "--out", str(home / name), *asked) for name, asked in SEARCHES.items()},
    }
    began = time.monotonic()
    with ExitStack() as stack:
        logs = {name: cluster.shared / f"together-{name}.log" for name in jobs}
        running = {
            name: stack.enter_context(
                cluster.head.running(*SUBMIT, "--", "raycrt", *words, log=logs[name])
            )
            for name, words in jobs.items()
        }
        for name, job in running.items():
            awaited(f"the end of {name}", lambda job=job: job.poll() is not None, 300)
            say(f"{name} ended within {time.monotonic() - began:.0f} s")
    for name, job in running.items():
        assert job.returncode == 0, logs[name].read_text()

    harness.check(home, harness.twin(home, Spec.load(home / "run" / "train")))
    for name, asked in SEARCHES.items():
        local = laptop("raycrt", "search", "--out", str(tmp_path / name), *asked)
        assert local.returncode == 0, local.stdout + local.stderr
        assert trials(home / name) == trials(tmp_path / name)


def test_a_job_that_asks_for_a_teams_resource_works_on_the_teams_nodes(
    cluster: Cluster, say: Say
) -> None:
    there = cluster.shared / "team"
    asked = options(
        train__epochs=5,
        search__rungs=[],
        search__trials=3,
        run__workers=2,
        run__cpus_per_worker=0.25,
        run__resources={"team": 1},
    )
    began = time.monotonic()
    job = cluster.head.run(*SUBMIT, "--", "raycrt", "demo", "--out", str(there), *asked)
    assert job.returncode == 0, job.stdout + job.stderr
    say(f"{time.monotonic() - began:.0f} s")
    # A node has one of the resource, and so one worker, though it has CPUs for four.
    assert cluster.trying(there / "search") == TEAM
    assert cluster.having("RayTrainWorker", "DEAD") == TEAM
    assert cluster.having("MapWorker(MapBatches(Certify))", "DEAD") == TEAM


def test_more_of_a_resource_than_there_is_is_refused_by_name(cluster: Cluster) -> None:
    asked = options(run__resources={"team": 2})
    out = cluster.shared / "too-much"
    job = cluster.head.run(*SUBMIT, "--", "raycrt", "search", "--out", str(out), *asked)
    assert job.returncode == 2, job.stdout + job.stderr
    assert "the cluster has room for one trial" in job.stdout
    assert "'team': 2" in job.stdout
