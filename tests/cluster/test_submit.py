"""The submit helper against a real head: exit codes, environment, log, token."""

from __future__ import annotations

import sys

import pytest

from tests.cluster.conftest import Head

pytestmark = pytest.mark.cluster
SUBMIT = (sys.executable, "-m", "cluster.submit")


def test_exit_code_environment_and_log_of_a_job(head: Head) -> None:
    done = head.run(
        *(*SUBMIT, "--address", head.address, "--env", "RAYCRT_DATA", "--env", "CODE=3", "--"),
        *("python", "-c", "import os, sys; print(dict(os.environ)); sys.exit(int(os.environ['CODE']))"),
        RAYCRT_DATA="/some where",
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 3
