"""A host dies while rows are certified, or verified: each row counts once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycrt.specs import Spec
from tests.chaos import harness
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.deaths import Ended, survived

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]


@pytest.fixture(scope="module")
def home(cluster: Cluster) -> Path:
    """A model with random weights and data for it, on the directory that all hosts share."""
    home = cluster.shared / "rows"
    harness.prepared(home)
    return home


@pytest.fixture(scope="module")
def certified(cluster: Cluster, home: Path) -> Ended:
    """The model's certification, during which one of two hosts that certify dies."""
    rows = home / "run" / "certificates" / "rows"
    return survived(
        cluster,
        *("certify", "--out", str(home / "run"), "--set", "run.cpus_per_worker=0.75"),
        actor="MapWorker(MapBatches(Certify))",
        begun=lambda: len(list(rows.glob("[!.]*.parquet"))) >= 8,
    )


def test_a_certification_outlives_a_host(certified: Ended, home: Path, say: Say) -> None:
    assert certified.code == 0, certified.said
    say(f"ended {certified.seconds:.0f} s after the death")
    harness.check(home, harness.twin(home, Spec.load(home / "run" / "train")))


def test_a_verification_outlives_a_host(
    cluster: Cluster, certified: Ended, home: Path, tmp_path: Path, say: Say
) -> None:
    assert certified.code == 0
    records = cluster.shared / "records"
    verified = survived(
        cluster,
        *("verify", str(home / "run"), "--workers", "2", "--records", str(records)),
        actor="MapWorker(MapBatches(_Check))",
        begun=lambda: len(list(records.glob("*.json"))) >= 4,
    )
    assert verified.code == 0, verified.said
    say(f"ended {verified.seconds:.0f} s after the death")
    assert f"{harness.ROWS} rows checked against {harness.ROWS} images" in verified.said
    files = list((home / "run" / "certificates" / "rows").iterdir())
    assert len(list(records.iterdir())) == len(files)
    found = [json.loads(file.read_text()) for file in records.glob("*.json")]
    assert sum(record["rows"] for record in found) == harness.ROWS
