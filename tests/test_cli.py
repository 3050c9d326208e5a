"""The command line: bad input is one line on standard error and exit code 2, before any work."""

import subprocess
import sys
from pathlib import Path

import pytest

RAYCRT = Path(sys.executable).parent / "raycrt"

BAD = {
    "recipe": (["train", "--recipe", "digit"], "nearest known is 'digits'"),
    "key": (["train", "--set", "train.gama=1"], "nearest known is 'train.gamma'"),
    "value": (["demo", "--set", "model.depth=1"], "depth must be at least 2"),
    "override": (["search", "--set", "train.gamma"], "section.key=value"),
    "data": (["train", "--set", "data.name=mnist", "--data-dir", "/nowhere"], "must hold mnist"),
    "model": (["certify", "--out", "/nowhere"], "/nowhere"),
    "other model": (["certify", "--model", "/nowhere.onnx"], "must exist"),
    "certificates": (["report", "--out", "/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path):
    arguments, message = BAD[name]
    done = subprocess.run(
        [RAYCRT, *arguments], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
