"""`ray up` over ssh: the cluster's file with only addresses, user and key changed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import ROOT, plain_environment
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.hosts import Host, awaited, own

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(580)]

_TOOLS = ("rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
_SHARED, _TEMPORARY = Path("/shared"), Path("/tmp/ray")
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_ANSWERS = "Server listening"
# A fresh host runs nothing but sshd. Its user's home, the shared directory and Ray's directory are
# its own although the hosts are one machine. By the default route, which leads nowhere here, Ray
# finds out which address is the host's.
_FRESH = """
mount --bind "$0" /shared && cd "$1" && mkdir -p ray && mount --bind ray /tmp/ray
awk -F: -v OFS=: -v home="$HOME" '$1 == "root" {$6 = home} {print}' /etc/passwd > passwd
mount --bind passwd /etc/passwd && mkdir -p /run/sshd && ip route add default dev eth0
exec /usr/sbin/sshd -D -e -f "$HOME/sshd_config"
"""
_SSHD = """
HostKey {home}/.ssh/id
AuthorizedKeysFile {home}/.ssh/id.pub
PermitRootLogin prohibit-password
StrictModes no
"""
# What a host has of the Python packages that it would fetch from an index.
# (For pip this means that it is false that a build is isolated.)
_PIP = "[install]\nno-index = true\nno-build-isolation = false\n"


class Machines:
    """Three hosts that are reached by ssh alone, and the desk that they are reached from."""

    def __init__(self, base: Path, key: Path) -> None:
        self.shared, self.home, self._own = base / "shared", own(base) / "home", own(base)
        environment = plain_environment(self.home)
        (self.shared / "raycrt").mkdir()
        names = ("desk", "first", "second", "third")
        self.hosts = {
            name: Host(name, 20 + number, base, environment) for number, name in enumerate(names)
        }
        self.desk, *self.reached = self.hosts.values()
        for host in self.hosts.values():
            host.put("home/.ssh/id", key.read_text())
            host.put("home/.ssh/id.pub", key.with_suffix(".pub").read_text())
            host.put("home/sshd_config", _SSHD.format(home=self.home))

    def on(self) -> None:
        for host in self.hosts.values():
            host.start("bash", "-ec", _FRESH, str(self.shared), str(self._own))
        for host in self.hosts.values():
            awaited(f"sshd on {host.name}", lambda host=host: _ANSWERS in host.said())
        for host in self.reached:
            self._prepare(host)

    def _prepare(self, host: Host) -> None:
        """Give a host the packages that pip would fetch: there is no index to fetch them from."""
        host.put("home/.config/pip/pip.conf", _PIP)
        inside = "raycrt/.venv"
        environment = self.home / inside
        made = host.run(sys.executable, "-m", "venv", "--without-pip", str(environment))
        assert made.returncode == 0, made.stderr
        outer = sysconfig.get_paths()["purelib"]
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        host.put(f"home/{inside}/lib/{version}/site-packages/outer.pth", f"{outer}\n")
        for name, module in {"ray": "ray.scripts.scripts", "pip": "pip._internal.cli.main"}.items():
            script = f"#!{environment}/bin/python\nfrom {module} import main\nexit(main())\n"
            host.put(f"home/{inside}/bin/{name}", script)
            assert host.run("chmod", "+x", str(environment / "bin" / name)).returncode == 0

    def file(self, directory: Path) -> Path:
        """The cluster's file, for these hosts."""
        config = yaml.safe_load((ROOT / "cluster/ray-cluster.yaml").read_text())
        head, *workers = [host.address for host in self.reached]
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
        file = directory / "cluster.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    @contextmanager
    def tunnel(self, port: str) -> Iterator[None]:
        """The head's `port` of loopback as that of the desk."""
        way = ("-N", "-L", f"{port}:127.0.0.1:{port}", f"root@{self.reached[0].address}")
        known = ("-o", "StrictHostKeyChecking=no", "-o", "ExitOnForwardFailure=yes")
        log, key = self.shared / "tunnel.log", str(self.home / ".ssh/id")
        with self.desk.running("ssh", "-v", "-i", key, *known, *way, log=log):
            awaited("the tunnel", lambda: "Entering interactive session" in log.read_text())
            yield

    def said(self, *command: str) -> str:
        """What a command of the desk says, in the project's directory; it must succeed."""
        done = self.desk.run(*command, seconds=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def machines(cluster: Cluster, network: Path, tmp_path: Path) -> Iterator[Machines]:
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"ray up needs the programs {', '.join(missing)}")
    cluster.down()
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made = [place for place in (_SHARED, _TEMPORARY) if not place.exists()]
    for place in made:
        place.mkdir()
    machines = Machines(network, key)
    try:
        machines.on()
        yield machines
    finally:
        for host in machines.hosts.values():
            host.kill()
        for place in made:
            place.rmdir()


def test_a_cluster_is_brought_up_used_and_taken_down(
    machines: Machines, tmp_path: Path, say: Say
) -> None:
    file = str(machines.file(tmp_path))
    machines.said(*_RAY, "get-auth-token", "--generate")
    began = time.monotonic()
    machines.said("env", "RAY_UP_enable_autoscaler_v2=0", *_RAY, "up", "--yes", file)
    say(f"ray up returned after {time.monotonic() - began:.0f} s")

    def nodes() -> int:
        active = machines.said(*_RAY, "exec", file, "ray status").partition("Pending")[0]
        return sum(map(int, re.findall(r"^ (\d+) \S*node", active, re.MULTILINE)))

    seconds = awaited("three nodes", lambda: nodes() == 3, 240)
    say(f"three nodes {seconds:.0f} s later")

    with machines.tunnel("8265"):
        machines.said(
            *(sys.executable, "-m", "raycrt.cluster.submit", "--", "raycrt", "train"),
            *("--out", "/shared/raycrt/run", "--workers", "2", "--set", "train.epochs=2"),
        )
    assert (machines.shared / "raycrt" / "run" / "train" / "model.safetensors").is_file()

    said = machines.said(*_RAY, "down", "--yes", file)
    for host in machines.reached:
        seconds = awaited(f"the end of Ray on {host.name}: {said}", lambda h=host: not running(h))
        say(f"{host.name} runs no Ray {seconds:.0f} s later")


def running(host: Host) -> list[str]:
    """The servers of Ray that run on a host."""
    return re.findall("raylet|gcs_server", host.run("ps", "-axo", "comm").stdout)
