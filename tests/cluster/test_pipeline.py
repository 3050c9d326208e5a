"""The whole pipeline as a job on a real cluster gives the numbers that a laptop gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raycrt.networks.checkpoint import MODEL
from tests.cluster.runs import check

if TYPE_CHECKING:
    from tests.cluster.conftest import Head, Run

# One trial at a time, so that the search is reproducible too.
TINY = {
    "model.width": 16,
    "train.epochs": 3,
    "data.limit": 300,
    "certify.steps": 10,
    "certify.batch_size": 64,
    "search.trials": 2,
    "search.concurrent": 1,
    "search.rungs": [1],
    "search.rows": 50,
    "search.finalists": 1,
    "search.seeds": 1,
    "run.workers": 2,
}


def settings() -> tuple[str, ...]:
    return tuple(word for key, value in TINY.items() for word in ("--set", f"{key}={value}"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(560)
def test_the_pipeline_as_a_job_equals_the_pipeline_on_a_laptop(
    head: Head, laptop: Run, tmp_path: Path
) -> None:
    there, here = tmp_path / "job", tmp_path / "laptop"
    job = head.run(
        *("ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--"),
        *("raycrt", "demo", "--out", str(there), *settings()),
    )
    assert job.returncode == 0, job.stdout + job.stderr
    local = laptop("raycrt", "demo", "--out", str(here), *settings())
    assert local.returncode == 0, local.stdout + local.stderr

    check(there, here)

    # The job script finds what the first job left on the storage that all nodes share.
    written = (there / "train" / MODEL).stat().st_mtime_ns
    again = head.run(
        *(sys.executable, "-m", "raycrt.cluster.submit", "--address", head.address, "--"),
        *("python", "-m", "raycrt.cluster.pipeline", "--out", str(there), *settings()),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 3
    assert (there / "train" / MODEL).stat().st_mtime_ns == written
    assert not list(there.glob(".shared-*"))
