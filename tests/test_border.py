"""The borders of the house: what may import what, and what stays unloaded."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_importing_raycrt_loads_no_ray():
    code = (
        "import sys, raycrt, raycrt.cli.main, raycrt.training.loop; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_import_direction():
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout
