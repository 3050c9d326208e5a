"""What a cluster listens on, and who is let in: what docs/cluster.md lists, and no more."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycrt.distributed.training.process_group import PORTS
from tests.multinode.cluster import Cluster
from tests.multinode.hosts import Host, awaited

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]

_LISTENING = """
import json, psutil
found = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN]
whose = {c.pid: " ".join(psutil.Process(c.pid).cmdline()) for c in found}
print(json.dumps([(whose[c.pid], c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in found]))
"""
_CONNECT = """
import json, socket, sys
def accepts(port):
    try:
        socket.create_connection((sys.argv[1], port), 5).close()
        return True
    except OSError:
        return False
print(json.dumps([port for port in json.loads(sys.argv[2]) if accepts(port)]))
"""
# The first of these that is in a command names its program.
_PROGRAMS = {
    "raylet/raylet": "raylet",
    "gcs_server": "GCS",
    "monitor.py": "autoscaler",
    "dashboard.py": "dashboard",
    "ray.util.client.server": "Ray Client",
    "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "environments",
    "ray::RayTrainWorker": "training",
    "ray::": "actor",
    "raycrt": "driver",
}
_LOOPBACK, _OWN, _ALL = "loopback", "own", "all"
# Ports that Ray chooses among 10002 to 19999, the system, and torch's store.
_WORKER, _ANY, _STORE = "worker", "any", "store"
_FIXED = (6379, 8265, 10001, 44217, 44227, 52365)

Kind = tuple[str, str, str]
ACTOR = ("actor", _ALL, _WORKER)
EVERY_NODE = {
    ("raylet", _ALL, _ANY),
    ("agent", _ALL, _ANY),
    ("agent", _OWN, "52365"),
    ("agent", _LOOPBACK, "52365"),
    ("environments", _OWN, _ANY),
}
HEAD = EVERY_NODE | {
    ("GCS", _ALL, "6379"),
    ("autoscaler", _ALL, "44217"),
    ("dashboard", _ALL, "44227"),
    ("dashboard", _LOOPBACK, "8265"),
    ("Ray Client", _OWN, "10001"),
    ("Ray Client", _LOOPBACK, "10001"),
    ("driver", _ALL, _WORKER),
    ACTOR,
}
WORKER = EVERY_NODE | {("training", _ALL, _WORKER), ("training", _OWN, _ANY)}
STORE = ("training", _OWN, _STORE)


def test_during_a_training_what_listens_is_what_is_documented(
    cluster: Cluster, stranger: Host
) -> None:
    log = cluster.shared / "listens.log"
    words = (
        *("-m", "raycrt", "train", "--out", str(cluster.shared / "listens"), "--workers", "2"),
        *("--set", "model.width=16", "--set", "data.limit=300", "--set", "train.epochs=9000"),
    )
    with cluster.head.running(sys.executable, *words, log=log) as command:

        def trains() -> bool:
            assert command.poll() is None, log.read_text()
            return "train 1/" in log.read_text()

        awaited("the first epoch", trains)
        hosts = [cluster.hosts[name] for name in ("head", "one", "two")]
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(listening, hosts))
        for host, kinds in zip(hosts, found, strict=True):
            reached = {
                port for kind, ports in kinds.items() if kind[1] != _LOOPBACK for port in ports
            }
            # Nothing but a firewall keeps a stranger from connecting to what is not on loopback.
            assert accepting(stranger, host, {*reached, 8265}) == reached
    assert set(found[0]) == HEAD
    for kinds in found[1:]:
        assert WORKER <= set(kinds) <= WORKER | {STORE, ACTOR}
    assert sum(STORE in kinds for kinds in found[1:]) == 1


def listening(host: Host) -> dict[Kind, set[int]]:
    """The ports of a host on which a program listens, by program, interface and kind of port."""
    done = host.run(sys.executable, "-c", _LISTENING)
    assert done.returncode == 0, done.stderr
    places = {"127.0.0.1": _LOOPBACK, host.address: _OWN, "0.0.0.0": _ALL, "::": _ALL}
    found: dict[Kind, set[int]] = {}
    for command, address, port in json.loads(done.stdout):
        program = next(name for part, name in _PROGRAMS.items() if part in command)
        found.setdefault((program, places[address], kind_of(port)), set()).add(port)
    return found


def kind_of(port: int) -> str:
    if port in _FIXED:
        return str(port)
    if port in range(10002, 20000):
        return _WORKER
    return _STORE if port in PORTS else _ANY


def accepting(stranger: Host, host: Host, ports: set[int]) -> set[int]:
    """Those of the ports of a host that take a connection of the stranger."""
    done = stranger.run(*(sys.executable, "-c", _CONNECT, host.address, json.dumps(sorted(ports))))
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))
