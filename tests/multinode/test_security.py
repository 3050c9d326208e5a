"""Without the token nobody on the network gets anything of a cluster, and no log gives it away."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator

import pytest

from tests.multinode.cluster import Cluster
from tests.multinode.hosts import Host
from tests.multinode.pipeline import PIPELINE, SUBMIT, options

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]

_CLIENT = """
import ray, sys
ray.init(sys.argv[1])
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""
_ASK = """
import json, sys, urllib.error, urllib.request
def status(url):
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return type(error.reason).__name__
print(json.dumps([status(url) for url in sys.argv[1:]]))
"""
TRAIN = ("--set", "model.width=16", "--set", "data.limit=300", "--set", "train.epochs=3")


def with_token(token: str | None) -> tuple[str, ...]:
    """The words before a command that runs with a token, or with none."""
    if token is None:
        return ("env", "RAY_AUTH_MODE=disabled")
    return ("env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={token}")


@pytest.mark.parametrize("guess", [None, "a" * 64])
def test_a_stranger_joins_nothing_and_starts_nothing(
    cluster: Cluster, stranger: Host, guess: str | None
) -> None:
    head, known, before = cluster.head.address, with_token(guess), cluster.jobs()
    joined = stranger.run(
        *known, f"RAY_ADDRESS={head}:6379", "raycrt", "train", "--out", "/tmp/none", *TRAIN
    )
    assert joined.returncode == 2 and "it refuses the token" in joined.stderr
    bare = stranger.run(*known, sys.executable, "-c", _CLIENT, f"{head}:6379")
    assert bare.returncode != 0 and "InvalidAuthToken" in bare.stderr
    client = stranger.run(*known, sys.executable, "-c", _CLIENT, f"ray://{head}:10001")
    assert client.returncode != 0 and not client.stdout
    # The dashboard is out of reach; the agents of the nodes take jobs too.
    for port, said in ((8265, "not submitted"), (52365, "refuses the token")):
        server = ("--address", f"http://{head}:{port}")
        job = stranger.run(*known, *SUBMIT[:3], *server, "--working-dir", "docs", "--", "true")
        assert job.returncode == 2 and said in job.stderr
    assert cluster.jobs() == before


def test_the_token_lets_a_host_in_where_it_is_documented(cluster: Cluster, stranger: Host) -> None:
    head, known = cluster.head.address, with_token(cluster.token)
    there = stranger.run(*known, f"RAY_ADDRESS={head}:6379", "raycrt", "doctor")
    assert f"answers at {head}:6379: 2 CPUs" in there.stdout


def test_a_host_that_is_no_node_joins_nothing_though_it_has_the_token(
    cluster: Cluster, stranger: Host
) -> None:
    known = (*with_token(cluster.token), f"RAY_ADDRESS={cluster.head.address}:6379")
    joined = stranger.run(*known, "raycrt", "train", "--out", "/tmp/none", *TRAIN)
    assert joined.returncode == 2, joined.stdout + joined.stderr
    [said] = joined.stderr.strip().splitlines()
    assert "must be joined on a node of its cluster" in said
    assert "python -m raycrt.cluster.submit" in said


def test_without_a_token_only_metrics_and_health_are_told(cluster: Cluster, stranger: Host) -> None:
    open_to_all = ["52365/api/healthz", "52365/api/local_raylet_healthz", "44217/metrics"]
    closed = ["52365/", "52365/api/job_agent/jobs/", "52365/api/v0/logs", "52365/logs/"]
    urls = [f"http://{cluster.head.address}:{path}" for path in (*open_to_all, *closed)]
    told = json.loads(stranger.run(sys.executable, "-c", _ASK, *urls).stdout)
    assert told == [200] * len(open_to_all) + [401] * len(closed)


@pytest.fixture
def password(cluster: Cluster) -> Iterator[str]:
    """A password in the environment of the Ray of every host, which runs on two workers."""
    secret = secrets.token_hex(20)
    with cluster.anew(PGPASSWORD=secret):
        cluster.up("one", "two")
        yield secret


def test_secrets_of_nodes_are_in_no_log_and_no_result(cluster: Cluster, password: str) -> None:
    out, study = cluster.shared / "secrets", cluster.shared / "study.db"
    asked = options(search__storage=f"sqlite:///{study}", search__trials=1, search__finalists=0)
    done = cluster.head.run(
        *SUBMIT, "--env", "RAYCRT_DATA", "--", *PIPELINE, "--out", str(out), *asked, seconds=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report" / "report.html").is_file() and study.is_file()
    assert cluster.holding("search.storage=sqlite"), "the search finds what is there"
    assert not cluster.holding(password)
    assert not cluster.holding(cluster.token)

    # A spec with a password is refused, and the refusal does not repeat it ...
    given, named = secrets.token_hex(20), secrets.token_hex(20)
    url = f"search.storage=postgresql+psycopg://me:{given}@{cluster.head.address}/studies"
    refused = cluster.head.run(*SUBMIT, "--", *PIPELINE, "--out", str(out), "--set", url)
    assert refused.returncode == 2
    [said] = [line for line in refused.stdout.splitlines() if line.startswith("raycrt: ")]
    assert "search.storage: must hold no password" in said and given not in said
    # ... but Ray keeps the words of a job, with which its log begins, and its variables.
    assert cluster.head.run(*SUBMIT, "--env", f"NAMED={named}", "--", "true").returncode == 0
    assert "jobs" in cluster.holding(given)
    assert "jobs" in cluster.holding(named)
