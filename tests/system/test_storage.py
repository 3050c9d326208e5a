"""Places: the same laws on a local disk and on an object store."""

import os
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest

from raycrt.errors import InvalidInput
from raycrt.system.places import lease, outputs, storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def home(request, tmp_path):
    """A directory that is not there yet."""
    if request.param == "local":
        return tmp_path / "a" / "run"
    return storage.given(f"{request.getfixturevalue('object_store')}/{tmp_path.name}/run")


@pytest.fixture
def remote(object_store, tmp_path):
    return storage.given(f"{object_store}/{tmp_path.name}/run")


def test_what_is_written_is_read_listed_and_deleted(home):
    assert not home.is_dir() and not (home / "rows").exists()
    assert outputs.made(home) == home
    folder = home / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for content in (b"old", b"new"):
        outputs.write_atomically(folder / "one.bin", content)
    outputs.write_atomically(folder / ".two.partial", b"")
    assert (folder / "one.bin").read_bytes() == b"new"
    assert (folder / "one.bin").stat().st_size == 3
    assert sorted(file.name for file in folder.iterdir()) == [".two.partial", "one.bin"]
    assert [str(file) for file in home.glob("*/*.bin")] == [str(folder / "one.bin")]
    assert (folder / "one.bin").relative_to(home).as_posix() == "rows/one.bin"
    assert home.is_dir() and (folder / "one.bin").is_file()
    assert pickle.loads(pickle.dumps(folder)) == folder == storage.place(str(folder))
    with storage.local(folder / "one.bin") as file:
        assert isinstance(file, Path) and (file.name, file.read_bytes()) == ("one.bin", b"new")
    storage.remove(folder)
    storage.remove(folder)
    assert not folder.exists()


def test_another_process_sees_at_once_what_is_written(home):
    other = storage.place(str(home))
    outputs.made(home)
    outputs.write_atomically(home / "early", b"")
    assert not (other / "late").is_file() and [file.name for file in other.iterdir()] == ["early"]
    outputs.write_atomically(home / "late", b"")
    assert (other / "late").is_file() and len(list(other.iterdir())) == 2


def test_arrow_reads_a_place(home):
    from pyarrow.fs import FileSystem

    outputs.made(home)
    outputs.write_atomically(home / "one", b"text")
    path, files = storage.for_arrow(home)
    files = files or FileSystem.from_uri(path)[0]
    with files.open_input_file(f"{path}/one") as opened:
        assert opened.read() == b"text"


def test_a_local_path_is_a_plain_path(tmp_path):
    for text in ("runs/a", str(tmp_path), f"file://{tmp_path}"):
        assert type(storage.given(text)) is type(Path())
    assert storage.given(f"file://{tmp_path}") == tmp_path
    assert storage.for_arrow(tmp_path) == (str(tmp_path), None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file://host/run", "must have the form file:///path, but got file://host/run"),
        ("dir://x", "dir://x must be in reach"),
        ("s4://bucket/run", "scheme that fsspec knows, such as s3://, but got s4://bucket/run"),
        ("s3:/bucket/run", "form scheme://bucket/path, but got s3:/bucket/run"),
        ("s3://", "form scheme://bucket/path"),
        ("s3://bucket/run?token=secret", "must hold no credentials"),
        ("s3:/name:secret@bucket/run", "must hold no credentials"),
        (Path("s3://name:secret@bucket/run"), "must be given as text"),
        ("s3://name:secret@bucket/run", "must hold no credentials"),
    ],
)
def test_a_uri_that_is_none_is_refused_without_its_secrets(text, said):
    with pytest.raises(InvalidInput, match=said) as refused:
        storage.given(text)
    assert "secret" not in str(refused.value)


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InvalidInput, match=r"s3a:// needs .*: pip install 'raycrt\[s3\]'"):
        storage.given("s3a://bucket/run")


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told(object_store):
    with pytest.raises(InvalidInput, match=r"s3://no-such/run must be in reach: .*bucket"):
        storage.given("s3://no-such/run")


@pytest.mark.slow
def test_one_command_at_a_time(remote, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT", 0.05)
    monkeypatch.setattr(lease, "_LEASE", 0.5)
    with outputs.held(remote), outputs.held(remote):
        mine = lease.token(remote, outputs.DRIVER)
        assert mine is not None
        # As another process sees it.
        monkeypatch.setattr(lease, "_OWN", {})
        holder = f"pid {os.getpid()} on "
        with pytest.raises(InvalidInput, match=f"one command at a time, but {holder}.* writes"):
            outputs.held(remote).__enter__()
        lease._OWN[str(remote / outputs.DRIVER)] = mine
    assert not (remote / outputs.DRIVER).exists()


@pytest.mark.slow
def test_what_a_killed_holder_left_is_taken_over(remote, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT", 0.05)
    monkeypatch.setattr(lease, "_LEASE", 0.3)
    outputs.write_atomically(remote / outputs.DRIVER, b"pid 1 on elsewhere #abc 7")
    began = time.monotonic()
    with outputs.held(remote):
        assert time.monotonic() - began > 0.3
        assert str(os.getpid()) in (remote / outputs.DRIVER).read_text()


@pytest.mark.slow
def test_of_several_that_wait_for_a_killed_holder_one_goes_on(remote, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT", 0.2)
    monkeypatch.setattr(lease, "_LEASE", 0.4)
    lock = remote / outputs.DRIVER
    outputs.write_atomically(lock, b"pid 1 on elsewhere #abc 7")
    won: list[str] = []

    def take(name: str) -> None:
        try:
            lease._take(lock, name, name)
            won.append(name)
        except InvalidInput:
            pass

    threads = [threading.Thread(target=take, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and lease._is_own(lease._read(lock), won[0])
