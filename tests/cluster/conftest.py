"""A real Ray head on loopback: its own ports, home, token and temporary directory."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_READY_SECONDS = 60
_STOP_SECONDS = 40
_COMMAND_SECONDS = 200

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head: the address of its job server and what a client's environment must hold."""

    address: str
    environment: dict[str, str]

    def run(self, *command: str, **more: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command at the project's root; `more` sets variables, or removes them by None."""
        return run(command, {**self.environment, **more})


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """`ray start --head --block` with two CPUs and a token; SIGTERM ends it and nothing else."""
    # Sockets have paths of at most 107 characters, so the directory must have a short name.
    base = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    token = base / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = plain_environment(base) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # SIGTERM would wait half a minute for actors that outlive their job.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    ports = _free_ports(9)
    names = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "node-manager-port",
        "object-manager-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--num-cpus=2", "--object-store-memory=200000000", "--disable-usage-stats"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--temp-dir={base / 'ray'}"),
        *("--min-worker-port=30000", "--max-worker-port=30999"),
        *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]
    log = base / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=base,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        _await(address, token.read_text(), process, log)
        yield Head(address=address, environment=environment)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        finally:
            shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def laptop() -> Iterator[Run]:
    """Run a command where no cluster is known: it starts a Ray of its own."""
    base = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    (base / "ray").mkdir()
    environment = plain_environment(base)
    try:
        yield lambda *command: run(command, environment)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def run(
    command: tuple[str, ...], environment: Mapping[str, str | None]
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user at the project's root would; its output as text."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )


def plain_environment(home: Path) -> dict[str, str]:
    """This environment without what points at another Ray, a home of its own, one thread each.

    The virtual environment's programs come first in PATH, as they would on a cluster's node.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(home / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _await(address: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as the job server answers; fail with the head's own words."""
    request = urllib.request.Request(f"{address}/api/version")
    request.add_header("Authorization", f"Bearer {token}")
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the head did not come up:\n{log.read_text()}")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that Ray gives to its workers here."""
    sockets = []
    for port in range(20000 + os.getpid() % 5000, 29999):
        candidate = socket.socket()
        try:
            candidate.bind(("", port))
        except OSError:
            candidate.close()
            continue
        sockets.append(candidate)
        if len(sockets) == count:
            break
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
