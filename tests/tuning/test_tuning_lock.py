"""One driver at a time, and none for ever."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raycrt import InvalidInput
from tests.tuning.driver import LANDSCAPE
from tuning import lock, search

# A driver that has started a process of its own, as Ray does.
DRIVER = """
import subprocess, sys, time
from pathlib import Path
from tuning import lock
with lock.held(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(100)
"""


def test_a_search_with_a_living_driver_is_refused_and_a_killed_one_holds_nothing(
    tmp_path: Path,
) -> None:
    psutil = pytest.importorskip("psutil", reason="psutil finds the driver's own process")
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    child = psutil.Process(int(driver.stdout.readline()))
    try:
        LANDSCAPE.save(tmp_path)
        holder = f"pid {driver.pid} on {socket.gethostname()}"
        with pytest.raises(InvalidInput, match=f"one driver at a time, but {holder}"):
            search.run(LANDSCAPE, tmp_path, resume=True)
        driver.kill()
        driver.wait()
        assert child.is_running()
        with lock.held(tmp_path):
            assert "pid" in (tmp_path / lock.FILE).read_text()
    finally:
        driver.kill()
        driver.communicate()
        child.kill()
