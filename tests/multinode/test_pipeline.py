"""The whole pipeline as a job on three hosts gives the numbers of one machine without a cluster."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.runs import check
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.hosts import awaited
from tests.multinode.pipeline import PIPELINE, SUBMIT, options

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]


def test_the_pipeline_on_three_hosts_equals_that_of_one_machine(
    cluster: Cluster, here: Path, say: Say
) -> None:
    cluster.up("one", "two")
    there = cluster.shared / "job"
    began = time.monotonic()
    job = cluster.head.run(*SUBMIT, "--", *PIPELINE, "--out", str(there), *options())
    say(f"{time.monotonic() - began:.0f} s as a job")
    assert job.returncode == 0, job.stdout + job.stderr
    assert not list(there.glob(".shared-*"))
    check(there, here)

    workers = {"one", "two"}
    assert cluster.having("RayTrainWorker", "DEAD") == workers
    assert cluster.having("MapWorker(MapBatches(Certify))", "DEAD") == workers
    assert cluster.trying(there / "search") == workers


def test_a_job_whose_driver_dies_with_its_host_is_submitted_again_and_resumes(
    cluster: Cluster, here: Path, say: Say
) -> None:
    cluster.up("one", "two", "three")
    there, log = cluster.shared / "lost", cluster.shared / "lost.log"
    command = [*SUBMIT, "--entrypoint-num-cpus", "1", "--retries", "1", "--", *PIPELINE]
    with cluster.head.running(*command, "--out", str(there), *options(), log=log) as submitted:

        def searched() -> bool:
            assert submitted.poll() is None, log.read_text()
            return (there / "search" / ".finished").is_file()

        awaited("the search", searched, 200)
        # "pid 7 on two": the process that holds the directory.
        home = (there / "train" / "driver").read_text().split()[-1]
        cluster.hosts[home].kill()
        noticed = awaited("the end of the first job", lambda: "again (1 of 1)" in log.read_text())
        cluster.start(home)
        ended = awaited("the end of the second job", lambda: submitted.poll() is not None, 300)
    say(f"lost after {noticed:.0f} s, and ended {ended:.0f} s after that")
    assert submitted.returncode == 0, log.read_text()
    assert "finished before" in log.read_text()
    check(there, here)
