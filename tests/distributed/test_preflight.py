"""What Ray lacks is told in one line, with exit code 2, before it starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycrt.distributed import preflight
from raycrt.errors import InvalidInput
from tests.conftest import Shell

RAYCRT = Path(sys.executable).parent / "raycrt"


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense", "host:", ":6379", "host:99999"],
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT of a Ray head") as refused:
        preflight.check_address(address)
    assert repr(address) in str(refused.value)


def test_an_address_where_nobody_answers_is_named(closed: str) -> None:
    with pytest.raises(InvalidInput, match=f"RAY_ADDRESS={closed} .* Connection refused"):
        preflight.check_address(closed)
    with pytest.raises(InvalidInput, match=r"nowhere\.invalid:6379"):
        preflight.check_address("nowhere.invalid:6379")


def test_a_server_that_is_no_ray_is_not_waited_for(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(InvalidInput, match=f"RAY_ADDRESS={other} must be a Ray that answers"):
        preflight.check_address(other)


@pytest.mark.slow
def test_a_token_that_is_wanted_and_not_there_is_told(
    closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-c", f"from raycrt.distributed.preflight import *; {_CALL}"]
    done = subprocess.run([*command, closed], capture_output=True, text=True, check=True)
    assert "there is no token; set RAY_AUTH_MODE=token" in done.stdout


# Ray reads its token once in a process.
_CALL = "import sys; print(refusal(sys.argv[1]))"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RAY_TMPDIR", "/tmp/" + "x" * 60, "at most 107 bytes"),
        ("RAY_TMPDIR", "/dev/null/below", "RAY_TMPDIR is a directory that takes Ray's files"),
        ("TMPDIR", "/dev/null/below", "TMPDIR is a directory that takes Ray's files"),
        ("HOME", "/dev/null", "HOME is a directory that takes Ray's token"),
    ],
)
def test_a_directory_that_takes_no_files_is_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=message):
        preflight.check_machine()


def test_the_longest_path_of_a_socket_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
    monkeypatch.setattr(preflight, "_check_writable", lambda directory, invariant: None)
    monkeypatch.setattr(preflight, "_free", lambda place: 2**30)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (room - 1))
    preflight.check_machine()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * room)
    with pytest.raises(InvalidInput, match="bytes=108"):
        preflight.check_machine()


def test_no_room_for_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_free", lambda place: 2**20)
    with pytest.raises(InvalidInput, match="there is room for Ray's objects"):
        preflight.check_machine()


def test_a_token_elsewhere_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    preflight.check_machine()


def test_a_search_ends_in_one_line(
    shell: Shell, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed)
    said = shell("search", "--out", tmp_path / "run", code=2)
    assert closed in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_process_ends_in_one_line(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [RAYCRT, "train", "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"RAY_ADDRESS": closed},
    )
    assert done.returncode == 2, done.stderr
    assert closed in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
