"""A Ray cluster with a token on several hosts: a head without CPUs, and workers of one CPU each."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.conftest import ROOT, plain_environment
from tests.multinode.hosts import Host, awaited, own

_SCRIPTS = (sys.executable, "-m", "ray.scripts.scripts")
_RAY = (*_SCRIPTS, "start", "--block", "--disable-usage-stats")
_OBJECTS = "--object-store-memory=100000000"
# No trial and no worker runs on the head, not even one that asks for memory alone.
_NOTHING = ("--num-cpus=0", "--memory=100000000", _OBJECTS)
_ROOM = ("--num-cpus=1", "--memory=2000000000", _OBJECTS)
# The workers of one team: each has one of a resource that no other node has.
TEAM = frozenset({"one", "two"})
_OF_TEAM = '--resources={"team": 1}'
_TOKEN = "auth_token"
_STARTED = "Ray runtime started"
_FIRST, JOBS = "head", "http://127.0.0.1:8265"
# By its defaults a head takes a node that says nothing for dead after 65 seconds; here after 16.
_HEALTH = {"period_ms": "1000", "timeout_ms": "3000", "failure_threshold": "4"}
# An answer of the state API, asked for by the standard library alone, which starts at once.
_ASK = """
import pathlib, sys, urllib.request
token = pathlib.Path("~/.ray/auth_token").expanduser().read_text()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


class Cluster:
    """The hosts by their names, of which the first is the head, and one that is outside of the
    cluster and has no token; all are off at first."""

    def __init__(self, base: Path, *workers: str) -> None:
        plain = plain_environment(own(base) / "home") | {
            "TMPDIR": str(own(base) / "tmp"),
            "PYTHONPATH": str(ROOT),
        }
        environment = plain | {
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
            **{f"RAY_health_check_{name}": value for name, value in _HEALTH.items()},
        }
        self.shared = base / "shared"
        self._temporary = own(base) / "ray"
        self.token = secrets.token_hex(32)
        self.hosts: dict[str, Host] = {}
        for number, name in enumerate((_FIRST, *workers), 1):
            host = self.hosts[name] = Host(name, number, base, environment)
            host.put(f"home/.ray/{_TOKEN}", self.token)
            host.environment["RAY_ADDRESS"] = f"{self.head.address}:6379"
        self.outside = Host("outside", len(self.hosts) + 1, base, plain)

    @property
    def head(self) -> Host:
        return self.hosts[_FIRST]

    def up(self, *workers: str) -> None:
        """Let exactly the head and these workers run, and all of them know it."""
        for name in set(self.hosts) - {_FIRST, *workers}:
            self.hosts[name].kill()
        if not self.head.runs:
            self.start(_FIRST)
            self.started(_FIRST)
            awaited("the job server", lambda: self._answers("/api/version"))
        missing = [name for name in workers if not self.hosts[name].runs]
        for name in missing:
            self.start(name)
        for name in missing:
            self.started(name)
        wanted = {self.hosts[name].address for name in (_FIRST, *workers)}
        awaited("the nodes of the cluster", lambda: self.nodes() == wanted)

    def down(self) -> None:
        """Switch all hosts off."""
        for host in (*self.hosts.values(), self.outside):
            host.kill()

    @contextmanager
    def anew(self, **variables: str) -> Iterator[None]:
        """Hosts that are off at first, know of nothing that was before, and have further variables
        in their environments; they are off afterwards, and do not have these."""
        self.down()
        hosts = (*self.hosts.values(), self.outside)
        for host in hosts:
            host.environment |= variables
        try:
            yield
        finally:
            self.down()
            for host in hosts:
                for name in variables:
                    del host.environment[name]

    def start(self, name: str) -> None:
        """Switch a host on; its Ray joins the cluster in a while."""
        host = self.hosts[name]
        kind = (
            ("--head", "--port=6379", "--dashboard-host=127.0.0.1", *_NOTHING)
            if host is self.head
            else (f"--address={self.head.address}:6379", *_ROOM, *([_OF_TEAM] * (name in TEAM)))
        )
        where = (f"--node-ip-address={host.address}", f"--temp-dir={self._temporary}")
        host.start(*_RAY, *kind, *where)

    def started(self, name: str) -> None:
        """Wait until the Ray of a host runs."""
        host = self.hosts[name]

        def runs() -> bool:
            assert host.runs, host.said()
            return _STARTED in host.said()

        awaited(f"Ray on {name}", runs)

    def drain(self, name: str, seconds: int) -> None:
        """Tell the cluster that a host will be reclaimed after some seconds, as a cloud would."""
        [node] = [
            node["node_id"]
            for node in self._listed("nodes")
            if node["node_ip"] == self.hosts[name].address and node["state"] == "ALIVE"
        ]
        done = self.head.run(
            *(*_SCRIPTS, "drain-node", "--address", f"{self.head.address}:6379"),
            *("--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "reclaimed", "--deadline-remaining-seconds", str(seconds)),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def nodes(self) -> set[str]:
        """The addresses of the nodes that the cluster takes for alive."""
        return {node["node_ip"] for node in self._listed("nodes") if node["state"] == "ALIVE"}

    def having(self, actor: str, *states: str) -> set[str]:
        """The hosts on which actors of a class are in one of `states`."""
        nodes = {node["node_id"]: node["node_ip"] for node in self._listed("nodes")}
        return {
            self.name(nodes[found["node_id"]])
            for found in self._listed("actors")
            if found["class_name"] == actor and found["state"] in states
        }

    def name(self, address: str) -> str:
        """The host with an address."""
        return next(name for name, host in self.hosts.items() if host.address == address)

    def trying(self, home: Path) -> set[str]:
        """The hosts on which trials of the search in `home` were measured, as Tune notes it."""
        notes = [file.read_text() for file in home.glob("tune/part-*/trial-*/result.json")]
        return {
            self.name(json.loads(line)["node_ip"]) for note in notes for line in note.splitlines()
        }

    def holding(self, secret: str) -> set[str]:
        """What holds a secret: files of the hosts, but for that of the token, or on the directory
        that they share, and the data of jobs."""
        found = {
            file.name
            for files in (*(host.files() for host in self.hosts.values()), self.shared.rglob("*"))
            for file in files
            if file.is_file() and file.name != _TOKEN and secret.encode() in file.read_bytes()
        }
        return found | ({"jobs"} if secret in self.jobs() else set())

    def jobs(self) -> str:
        """What the job server tells of all jobs."""
        return self._asked("/api/jobs/")

    def _listed(self, kind: str) -> list[dict[str, Any]]:
        answer = json.loads(self._asked(f"/api/v0/{kind}?limit=10000&detail=1"))
        return answer["data"]["result"]["result"]

    def _answers(self, path: str) -> bool:
        try:
            return bool(self._asked(path))
        except RuntimeError:
            return False

    def _asked(self, path: str) -> str:
        done = self.head.run(sys.executable, "-I", "-S", "-c", _ASK, JOBS + path)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout
