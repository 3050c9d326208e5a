"""Signals during `raycrt train` and `raycrt demo`: what is kept, and that the command goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycrt.distributed.training import train as training
from raycrt.networks import checkpoint
from raycrt.tuning.analysis import study
from tests.conftest import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(840)]

RAYCRT = Path(sys.executable).parent / "raycrt"
EPOCHS = 400


def stopped(
    arguments: list[str], number: int, at: Callable[[str], bool], *, group: bool = True
) -> tuple[int, str]:
    """Exit code and output of a command that gets a signal after a line `at` which it is.

    A terminal sends Ctrl-C to a group of processes, timeout(1) does so with SIGTERM.
    """
    process = subprocess.Popen(
        [RAYCRT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    output = ""
    try:
        for line in process.stdout:
            output += line
            if at(line):
                (os.killpg if group else os.kill)(process.pid, number)
                break
        output += process.communicate(timeout=300)[0]
    finally:
        process.kill()
    assert "Traceback" not in output
    return process.returncode, output


def named(output: str) -> list[str]:
    """The arguments of the command that goes on."""
    program, *arguments = shlex.split(output.split("to go on: ")[1].splitlines()[0])
    assert program == "raycrt"
    return arguments


def test_a_training_goes_on_by_the_command_that_is_named_and_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    # Long enough to be caught in the middle and shorter than the time of a checkpoint.
    values = ["model.depth=2", "model.width=16", f"train.epochs={EPOCHS}", "run.workers=1"]
    options = [part for value in values for part in ("--set", value)]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    arguments = ["train", "--recipe", "digits", "--out", str(broken), *options]
    before = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        found, output = stopped(arguments, number, lambda line: line.startswith("train "))
        assert found == code, output
        kept = training.last_checkpoint(broken / "train")
        assert kept is not None
        state = checkpoint.load_state(kept)
        assert state is not None
        assert f"last checkpoint: {kept} (epoch {state['epoch']} of {EPOCHS})" in output
        # The signal was sent when an epoch was told of; the epoch it came in is kept too.
        assert before + 1 < state["epoch"] < EPOCHS
        assert not (broken / "train" / checkpoint.MODEL).exists()
        before, arguments = state["epoch"], named(output)
    for rest in (arguments, ["train", "--recipe", "digits", "--out", str(whole), *options]):
        subprocess.run([RAYCRT, *rest], check=True, capture_output=True, timeout=300)
    resumed, uninterrupted = (
        checkpoint.weights_hash(checkpoint.load_model(out / "train")[0]) for out in (broken, whole)
    )
    assert resumed == uninterrupted


def test_a_demo_that_is_stopped_in_its_search_and_in_certification_goes_on(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        TINY.replace("epochs: 3", "epochs: 120")
        .replace("rungs: [1]", "rungs: [40]")
        .replace("trials: 5", "trials: 3")
        .replace("batch_size: 120", "batch_size: 4")
        .replace("seeds: 2", "seeds: 1")
    )
    arguments = ["demo", "--recipe", str(recipe), "--out", str(out), "--set", "run.workers=1"]
    code, output = stopped(arguments, signal.SIGINT, lambda line: line.startswith("trial   0"))
    assert code == 130, output
    home = out / "search"
    ended = [trial for trial in study.load(out)[1] if trial.state != "running"]
    assert any(trial.number == 0 and trial.complete for trial in ended)
    assert "finalist" not in output and "failed (" not in output
    assert not (home / study.BEST).exists() and not (home / ".finished").exists()

    code, output = stopped(
        named(output), signal.SIGTERM, lambda line: line.startswith("certify "), group=False
    )
    assert code == 143, output
    after = study.load(out)[1]
    assert [trial.number for trial in after] == [0, 1, 2]
    assert after[: len(ended)][0] == ended[0]
    assert (home / ".finished").exists() and not (out / "certificates" / ".finished").exists()

    rest = [RAYCRT, *named(output)]
    done = subprocess.run(rest, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("finished before") == 2
    assert (out / "report").is_dir()
