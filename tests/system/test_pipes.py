"""Commands whose output nobody reads to its end."""

import os
import subprocess
import sys

import pytest

from raycrt.system import pipes

# The module alone: the package loads torch.
WORK = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pipes", {pipes.__file__!r})
pipes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pipes)
pipes.outlive_readers()
sys.stdin.read()
for number in range(10_000):
    print("a line", number, flush=number % 2 == 0)
    print("a warning", file=sys.stderr)
sys.stdout.buffer.write(b"bytes")
open(sys.argv[1], "w").write("all done")
sys.exit(3)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_command_outlives_its_reader_and_keeps_its_exit_code(tmp_path, closed, unbuffered):
    reader, writer = os.pipe()
    stderr = writer if closed == "both" else subprocess.PIPE
    working = subprocess.Popen(
        [sys.executable, "-c", WORK, tmp_path / "file"],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=stderr,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    os.close(reader)
    _, said = working.communicate()
    assert working.returncode == 3
    assert (tmp_path / "file").read_text() == "all done"
    if closed == "stdout":
        assert set(said.splitlines()) == {b"a warning"}


def test_what_is_read_is_all_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WORK, tmp_path / "file"], input=b"", capture_output=True
    )
    assert done.stdout.count(b"\n") == 10_000 and done.stdout.endswith(b"bytes")
