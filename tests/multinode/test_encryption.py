"""TLS between the nodes of a cluster: a training runs, and who has no certificate joins nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.cluster import Cluster
from tests.multinode.pipeline import SUBMIT

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(560)]

TRAIN = ("--set", "model.width=16", "--set", "data.limit=300", "--set", "train.epochs=3")


@pytest.fixture
def certificates(cluster: Cluster) -> Iterator[Path]:
    """The certificates by which all hosts of a cluster know each other, in a directory."""
    at = cluster.shared / "certificates"
    at.mkdir()
    names = ["DNS:localhost", "IP:127.0.0.1"]
    names += [f"IP:{host.address}" for host in cluster.hosts.values()]
    signed(at, "authority")
    by = ("-CA", str(at / "authority.pem"), "-CAkey", str(at / "authority.key"))
    signed(at, "node", *by, "-addext", f"subjectAltName={','.join(names)}")
    variables = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(at / "node.pem"),
        "RAY_TLS_SERVER_KEY": str(at / "node.key"),
        "RAY_TLS_CA_CERT": str(at / "authority.pem"),
    }
    with cluster.anew(**variables):
        cluster.up("one", "two")
        yield at


def signed(at: Path, name: str, *more: str) -> None:
    """A key and a certificate with a name, which signs itself unless `more` says who does."""
    words = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    files = ("-keyout", f"{at}/{name}.key", "-out", f"{at}/{name}.pem", "-subj", f"/CN={name}")
    subprocess.run([*words, *files, *more], check=True, capture_output=True)


def test_a_training_runs_over_tls(cluster: Cluster, certificates: Path) -> None:
    out = cluster.shared / "encrypted"
    words = ("raycrt", "train", "--out", str(out), "--workers", "2", *TRAIN)
    job = cluster.head.run(*SUBMIT, "--", *words)
    assert job.returncode == 0, job.stdout + job.stderr
    assert (out / "train" / "model.safetensors").is_file()
    assert cluster.having("RayTrainWorker", "DEAD") == {"one", "two"}

    signed(certificates, "other")
    other = (
        f"RAY_TLS_SERVER_CERT={certificates}/other.pem",
        f"RAY_TLS_SERVER_KEY={certificates}/other.key",
        f"RAY_TLS_CA_CERT={certificates}/other.pem",
    )
    for variables, why in ((("RAY_USE_TLS=0",), "Socket closed"), (other, "CERTIFICATE_VERIFY")):
        words = ("env", *variables, "raycrt", "train", "--out", "/tmp/none", *TRAIN)
        joined = cluster.head.run(*words)
        assert joined.returncode == 2
        assert "must be a Ray that answers" in joined.stderr and why in joined.stderr
