"""Hosts on one machine: each has a network, processes, a name and directories of its own.

They are namespaces of Linux, joined by a bridge in a namespace of its own: nothing that a host
sends leaves them. All hosts see the file system of the machine, a shared directory among it; a
host's own directory has the same path on each of them, and is another one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock

_PREFIX, _SWITCH, _BRIDGE = "raycrt-", "raycrt-switch", "bridge"
_LOCK = Path(tempfile.gettempdir()) / "raycrt-hosts.lock"
_NETWORK = "10.77.0"
_TOOLS = ("bash", "ip", "nsenter", "setpriv", "unshare")
_SECONDS_FOR_OTHERS = 900
_MEMORY_OF_SHARED_OBJECTS = "256m"


class Host:
    """One host of a network, which is off until it is started."""

    def __init__(self, name: str, number: int, base: Path, environment: Mapping[str, str]) -> None:
        self.name, self.address = name, f"{_NETWORK}.{number}"
        self.environment = dict(environment)
        self._space, self._port = f"{_PREFIX}{name}", f"port-{name}"
        self._disk, self._own, self._log = base / "disks" / name, own(base), base / f"{name}.log"
        self._power: subprocess.Popen[bytes] | None = None
        for directory in ("home", "tmp"):
            (self._disk / directory).mkdir(parents=True)
        _ip("netns", "add", self._space)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", self._space)
        _ip("link", "add", self._port, "netns", _SWITCH, *peer)
        _ip("-n", _SWITCH, "link", "set", self._port, "master", _BRIDGE)
        _ip("-n", self._space, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-n", self._space, "link", "set", interface, "up")

    def said(self) -> str:
        """What the program has said since the host was started."""
        return self._log.read_text()

    @property
    def runs(self) -> bool:
        return self._power is not None and self._power.poll() is None

    def put(self, path: str, content: str) -> None:
        """Write a file of the host's own directory, readable by its owner alone."""
        file = self._disk / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o600)

    def files(self) -> Iterator[Path]:
        """All that is in the host's own directory."""
        return iter(self._disk.rglob("*"))

    def start(self, *program: str) -> None:
        """Switch the host on; it runs `program`, and is off as soon as that ends."""
        assert not self.runs, f"{self.name} runs already"
        _ip("-n", _SWITCH, "link", "set", self._port, "up")
        # The first process of a host adopts and buries the others, as bash does while it waits.
        boot = (
            'hostname "$0" && mount --bind "$1" "$2"'
            f" && mount -t tmpfs -o size={_MEMORY_OF_SHARED_OBJECTS} tmpfs /dev/shm"
            ' && shift 2 && cd "$HOME" && { "$@" & wait; }'
        )
        with self._log.open("wb") as log:
            self._power = subprocess.Popen(
                [
                *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._space),
                *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts"),
                *("bash", "-c", boot, self.name, str(self._disk), str(self._own)),
                *program,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """Cut power and cable: all processes end at once, and nobody is told of it."""
        _ip("-n", _SWITCH, "link", "set", self._port, "down")
        if self._power is not None:
            # Whatever runs in a namespace of processes ends with the first one of them.
            for first in psutil.Process(self._power.pid).children() if self.runs else []:
                first.send_signal(signal.SIGKILL)
            self._power.wait()
            self._power = None

    def command(self, *words: str) -> list[str]:
        """The words that run a command on this host, in the directory of the caller."""
        assert self._power is not None, f"{self.name} is off"
        [first] = psutil.Process(self._power.pid).children()
        inside = ("nsenter", "--target", str(first.pid), "--net", "--mount", "--pid", "--uts")
        until_killed = ("setpriv", "--pdeathsig", "KILL")
        return [*inside, *until_killed, "env", f"--chdir={Path.cwd()}", *words]

    @contextmanager
    def running(self, *words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs on this host during the block; its output goes to `log`."""
        with (
            log.open("wb") as file,
            subprocess.Popen(
                self.command(*words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def run(self, *words: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


def own(base: Path) -> Path:
    """Where each host has a directory of its own."""
    return base / "own"


def unavailable() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts need the programs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "hosts need root"
    probe = f"{_PREFIX}probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"hosts need network namespaces: {made.stderr.strip()}"
    _ip("netns", "delete", probe)
    return None


@contextmanager
def network() -> Iterator[Path]:
    """A network without hosts, and the directory to make them in; one at a time on a machine.

    What an earlier one has left, whose process was killed, is removed first.
    """
    with FileLock(_LOCK, timeout=_SECONDS_FOR_OTHERS):
        _clear()
        # Sockets have paths of at most 107 characters, so the directory has a short name.
        base = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        for directory in ("own", "disks", "shared"):
            (base / directory).mkdir()
        try:
            _ip("netns", "add", _SWITCH)
            _ip("-n", _SWITCH, "link", "add", _BRIDGE, "type", "bridge")
            _ip("-n", _SWITCH, "link", "set", _BRIDGE, "up")
            yield base
        finally:
            _clear()


def _clear() -> None:
    """End what runs in the namespaces of hosts, and remove these and their directories."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for space in (line.split()[0] for line in listed.stdout.splitlines()):
        if not space.startswith(_PREFIX):
            continue
        found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "delete", space)
    for left in Path("/tmp").glob(f"{_PREFIX}*/disks"):
        shutil.rmtree(left.parent, ignore_errors=True)


def awaited(what: str, holds: Callable[[], bool], seconds: float = 120) -> float:
    """Wait until `holds()` is true; the seconds that it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
