"""The pipeline on hosts that share an object store alone: the rows of a run on a disk."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.runs import check
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.hosts import awaited
from tests.multinode.pipeline import PIPELINE, SUBMIT, options

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(560)]

_PORT, _BUCKET = 9000, "runs"
_MAKE = f"import upath; upath.UPath('s3://{_BUCKET}').fs.mkdir('{_BUCKET}')"
_COPY = f"import sys, upath; upath.UPath('s3://{_BUCKET}').fs.get('{_BUCKET}/', sys.argv[1], True)"


@pytest.fixture
def keys(cluster: Cluster) -> Iterator[dict[str, str]]:
    """A store on the host outside of the cluster, and what every host's environment has of it."""
    pytest.importorskip("moto.server", reason="moto is the object store")
    found = {
        "AWS_ENDPOINT_URL": f"http://{cluster.outside.address}:{_PORT}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = (sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(_PORT))
    with cluster.anew(**found):
        cluster.outside.start(*store)
        awaited("the store", lambda: "Running on" in cluster.outside.said())
        made = cluster.outside.run(sys.executable, "-c", _MAKE)
        assert made.returncode == 0, made.stderr
        yield found


def test_a_job_on_a_store_outlives_a_host_and_equals_one_on_a_disk(
    cluster: Cluster, keys: dict[str, str], here: Path, say: Say
) -> None:
    cluster.up("one", "two", "three")
    log, copy = cluster.shared / "store.log", cluster.shared / "store"
    command = (*SUBMIT, "--", *PIPELINE, "--out", f"s3://{_BUCKET}/run", *options())
    began = time.monotonic()
    with cluster.head.running(*command, log=log) as job:

        def trains() -> bool:
            assert job.poll() is None, log.read_text()
            return bool(cluster.having("RayTrainWorker", "ALIVE"))

        awaited("the training", trains, 240)
        cluster.hosts[max(cluster.having("RayTrainWorker", "ALIVE"))].kill()
        died = time.monotonic()
        awaited("the end of the job", lambda: job.poll() is not None, 240)
    say(f"{time.monotonic() - began:.0f} s, ended {time.monotonic() - died:.0f} s after the death")
    assert job.returncode == 0, log.read_text()

    verified = cluster.head.run("raycrt", "verify", f"s3://{_BUCKET}/run")
    assert "each is proved" in verified.stdout, verified.stdout + verified.stderr
    copied = cluster.outside.run(sys.executable, "-c", _COPY, str(copy))
    assert copied.returncode == 0, copied.stderr
    check(copy / "run", here)
    assert (copy / "run" / "report" / "report.md").is_file()
    assert not list(copy.glob("run/**/driver"))
    assert not cluster.holding(keys["AWS_SECRET_ACCESS_KEY"])
