"""Directories of commands: one process at a time and none for ever, and they take files."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from raycrt.errors import InvalidInput
from raycrt.system.places import outputs
from raycrt.tuning.search import driver
from tests.tuning.driver import LANDSCAPE

# A driver that has started a process of its own, as Ray does.
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from raycrt.system.places import outputs
with outputs.held(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_directory_with_a_living_driver_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    psutil = pytest.importorskip("psutil", reason="psutil finds the driver's own process")
    out = tmp_path / "a" / "b"
    # Who holds a directory may hold it again, and afterwards another may.
    with outputs.held(out), outputs.held(out):
        pass
    command = [sys.executable, "-c", DRIVER, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    try:
        LANDSCAPE.save(out)
        holder = f"pid {process.pid} on {socket.gethostname()}"
        for _ in range(2):
            with pytest.raises(InvalidInput, match=f"one command at a time, but {holder} writes"):
                driver.run(LANDSCAPE, out, resume=True)
        process.kill()
        process.wait()
        assert child.is_running()
        with outputs.held(out):
            assert str(os.getpid()) in (out / outputs.DRIVER).read_text()
    finally:
        process.kill()
        process.communicate()
        child.kill()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
@pytest.mark.parametrize("use", [outputs.made, lambda out: outputs.held(out).__enter__()])
def test_a_directory_that_takes_no_files_is_refused(tmp_path, place, use):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="must be a directory that takes files"):
        use(tmp_path / place)


def test_a_disk_that_is_full_is_found_behind_what_it_led_to():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "study.journal")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("the search ended") from error
    except RuntimeError as error:
        assert outputs.disk_error(error) is full
    assert outputs.disk_error(FileNotFoundError(errno.ENOENT, "none")) is None
    assert outputs.disk_error(RuntimeError("another")) is None


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    file = tmp_path / "spec.yaml"
    outputs.write_atomically(file, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["spec.yaml"]
