"""Checks of what Ray needs to start, each with a one-sentence error before Ray is started."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import grpc
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import get_num_cpus
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError

from raycrt.errors import InvalidInput, require

_SECONDS_TO_ANSWER = 10.0
# Every head answers this request, but only from clients with its token.
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_TOKEN_WANTED = (
    "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, in the file that "
    "RAY_AUTH_TOKEN_PATH names or in ~/.ray/auth_token"
)
# A socket below Ray's directory, and the length that the kernel allows for its path.
_SOCKET, _LONGEST = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store", 107
# Ray refuses a smaller object store.
_STORE_BYTES = 75 * 2**20
_TOKEN_GIVEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def check_address(address: str) -> None:
    """Raise `InvalidInput` unless a Ray at `address` answers, within seconds: HOST:PORT, or "auto",
    which is the Ray of this machine."""
    if address == "auto":
        try:
            address = services.canonicalize_bootstrap_address_or_die(address)
        except ConnectionError:
            raise InvalidInput("RAY_ADDRESS is auto, but no Ray runs on this machine") from None
    host, _, port = address.rpartition(":")
    form = bool(host) and "/" not in host and port.isdecimal() and 0 < int(port) < 65536
    require(
        form,
        "RAY_ADDRESS is HOST:PORT of a Ray head, as in 10.0.0.1:6379 (an http:// address takes "
        "jobs: ray job submit)",
        RAY_ADDRESS=address,
    )
    why = refusal(address)
    if why is not None:
        raise InvalidInput(f"RAY_ADDRESS={address} must be a Ray that answers, but {why}")


def check_node(address: str) -> None:
    """Raise `InvalidInput` unless this machine is a node of the cluster of the Ray that answers at
    `address`, within seconds; elsewhere a program that joins would wait for a node for ever."""
    head = services.canonicalize_bootstrap_address_or_die(address)
    try:
        services.get_node_to_connect_for_driver(
            GcsClient(address=head), timeout_seconds=int(_SECONDS_TO_ANSWER)
        )
    except (RpcError, RuntimeError):
        check_address(address)
        raise InvalidInput(
            f"RAY_ADDRESS={address} must be joined on a node of its cluster, and none of them runs "
            "on this machine; to run a command there: python -m raycrt.cluster.submit, or ray job "
            "submit"
        ) from None


def cluster(address: str) -> str:
    """The resources of the Ray at `address`, as text, asked without joining it; `InvalidInput` if
    it does not answer within seconds."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    check_address(address)
    head = services.canonicalize_bootstrap_address_or_die(address)
    try:
        status = get_cluster_status(head, timeout=int(_SECONDS_TO_ANSWER))
    except (RpcError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(
            f"RAY_ADDRESS={address} must be a Ray that answers, but {said}"
        ) from None
    total = status.total_resources()
    cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
    nodes = len(status.active_nodes) + len(status.idle_nodes)
    return f"answers at {address}: {cpus:g} CPUs, {gpus:g} GPUs, nodes: {nodes}"


def local(workers: int) -> str:
    """The resources of a Ray that starts on this machine, as text; `InvalidInput` where it cannot
    start, or has fewer CPUs than there are `workers`."""
    check_machine()
    cpus = get_num_cpus()
    if cpus < workers:
        raise InvalidInput(
            f"this machine must have a CPU for each of {workers} workers, but it has {cpus:g}; "
            f"--workers {max(1, int(cpus))} asks for less"
        )
    return f"starts here, with {cpus:g} CPUs"


def refusal(address: str) -> str | None:
    """Why the Ray at `address`, HOST:PORT, does not answer this process; None if it does."""
    try:
        with init_grpc_channel(address) as channel:
            channel.unary_unary(_QUESTION)(b"", timeout=_SECONDS_TO_ANSWER)
    except AuthenticationError:
        return f"there is no token; {_TOKEN_WANTED}"
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return f"it refuses the token; {_TOKEN_WANTED}"
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return "what listens there is another server"
        return str(error.details())
    return None


def check_machine() -> None:
    """Raise `InvalidInput` if a local Ray cannot start on this machine."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    temporary = Path(os.environ.get(name, "/tmp"))
    length = len(os.fsencode(temporary / _SOCKET))
    require(
        length <= _LONGEST,
        f"the paths of Ray's sockets have at most {_LONGEST} bytes; RAY_TMPDIR may name a shorter "
        "directory",
        **{name: str(temporary), "bytes": length},
    )
    _check_writable(temporary, f"{name} is a directory that takes Ray's files")
    room = {str(place): _free(place) for place in (Path("/dev/shm"), temporary)}
    require(
        max(room.values()) >= _STORE_BYTES,
        f"there is room for Ray's objects: {_STORE_BYTES} bytes in one place",
        free=room,
    )
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode == "token" and not any(os.environ.get(name) for name in _TOKEN_GIVEN):
        _check_token()


def _check_token() -> None:
    """Check that Ray can store its token, which it creates in the home directory if missing."""
    kept = "HOME is a directory that takes Ray's token; else set RAY_AUTH_TOKEN_PATH"
    token = _token()
    if token is None:
        raise InvalidInput(kept)
    if not token.is_file():
        _check_writable(token.parent, kept)


def keep_token_private() -> None:
    """Make Ray's token, which Ray writes readable by everyone, readable by its owner only."""
    token = _token()
    if token is not None and token.is_file():
        token.chmod(0o600)


def _token() -> Path | None:
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:  # no home directory
        return None


def _check_writable(directory: Path, invariant: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        why = error.strerror or str(error)
        require(False, invariant, directory=str(directory), error=why)


def _free(place: Path) -> int:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return 0
