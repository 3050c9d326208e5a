"""Ctrl-C during `raycrt train`: a checkpoint of the epoch, the command that goes on from it."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raycrt import checkpoint
from raycrt.distributed import train as training
from raycrt.distributed.stages import INTERRUPTED

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]

RAYCRT = Path(sys.executable).parent / "raycrt"
EPOCHS = 400


def command(out: Path) -> list[str]:
    """Digits, long enough to be caught in the middle and shorter than the time of a checkpoint."""
    values = ["model.depth=2", "model.width=16", f"train.epochs={EPOCHS}", "run.workers=1"]
    options = [part for value in values for part in ("--set", value)]
    return ["train", "--recipe", "digits", "--out", str(out), *options]


def interrupted(out: Path) -> tuple[int, str]:
    """Exit code and output of a run that gets Ctrl-C, as a terminal sends it, after an epoch."""
    process = subprocess.Popen(
        [RAYCRT, *command(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while training.last_checkpoint(out / "train") is None and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def test_after_ctrl_c_the_command_that_is_named_ends_with_the_same_weights(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    code, output = interrupted(broken)
    assert code == INTERRUPTED, output
    assert "Traceback" not in output
    kept = training.last_checkpoint(broken / "train")
    state = checkpoint.load_state(kept)
    assert f"last checkpoint: {kept} (epoch {state['epoch']} of {EPOCHS})" in output
    # Ctrl-C was sent when the first epoch was kept; the epoch it came in is kept too.
    assert 1 < state["epoch"] < EPOCHS
    assert not (broken / "train" / checkpoint.MODEL).exists()

    named = output.split("to go on from it: ")[1].splitlines()[0]
    program, *arguments = shlex.split(named)
    assert program == "raycrt"
    for rest in (arguments, command(whole)):
        subprocess.run([RAYCRT, *rest], check=True, capture_output=True, timeout=300)
    resumed, uninterrupted = (
        checkpoint.weights_hash(checkpoint.load_model(out / "train")[0]) for out in (broken, whole)
    )
    assert resumed == uninterrupted
