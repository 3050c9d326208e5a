"""kill -9 in the middle of a search: of the driver, and of a trial."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycrt.tuning.analysis import study
from raycrt.tuning.trials import store
from tests.conftest import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
# Trials of a search, by the workers of each.
TRIALS = {1: 6, 2: 3}
RAYCRT = Path(sys.executable).parent / "raycrt"


def command(tmp_path: Path, workers: int) -> list[str]:
    """A search whose trials are long enough to be caught in the middle."""
    recipe = tmp_path / "long.yaml"
    epochs = 200 * workers
    long = TINY.replace("epochs: 3", f"epochs: {epochs}").replace("rungs: [1]", "rungs: [20]")
    recipe.write_text(long)
    arguments = ["search", "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    values = [f"trials={TRIALS[workers]}", "scheduler=none", f"workers={workers}", "seeds=1"]
    options = [part for value in values for part in ("--set", f"search.{value}")]
    return [str(RAYCRT), *arguments, *options]


@contextmanager
def started(tmp_path: Path, workers: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A driver that has finished a trial and runs one that is past its rung."""
    driver = subprocess.Popen(
        command(tmp_path, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        table = tmp_path / "run" / "search" / study.TRIALS
        caught = False
        deadline = time.monotonic() + 400
        while not caught and time.monotonic() < deadline and driver.poll() is None:
            if table.is_file():
                trials = study.load(tmp_path / "run")[1]
                past = [trial for trial in trials if trial.state == "running" and trial.rungs]
                caught = bool(past) and any(trial.complete for trial in trials)
            time.sleep(0.1)
        assert caught
        yield driver
    finally:
        driver.kill()
        driver.wait()


def check_finished(tmp_path: Path, workers: int) -> list[study.TrialRecord]:
    count = TRIALS[workers]
    trials = study.load(tmp_path / "run")[1]
    assert [trial.number for trial in trials] == list(range(count))
    assert {trial.state for trial in trials} <= {"complete", "pruned", "failed"}
    assert {trial.number for trial in trials if trial.state == "failed"} <= {
        trial.number for trial in trials if trial.params["train.learning_rate"] == 1e30
    }
    assert (tmp_path / "run" / "search" / study.BEST).is_file()
    assert not list((tmp_path / "run" / "search" / "states").iterdir())
    for number in range(count):
        # A trial that was taken up again did not pass its rung once more; workers that were killed
        # before Ray Train had noted their last checkpoint may have.
        epochs = reported(tmp_path, number)
        assert epochs == sorted(set(epochs) if workers == 1 else epochs), (number, epochs)
    return trials


def reported(tmp_path: Path, number: int) -> list[int]:
    """The epochs that a trial told Tune of, over all parts of the search."""
    files = sorted((tmp_path / "run" / "search" / "tune").glob(f"part-*/trial-{number:05d}/*.json"))
    lines = [
        json.loads(line)
        for file in files
        if file.name == "result.json"
        for line in file.read_text().splitlines()
    ]
    return [line["epoch"] for line in lines if store.REASON not in line]


@pytest.mark.timeout(840)
@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_of_the_driver_every_trial_counts_once(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many short runs of Ray Train start here, and other work on the machine would starve them.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with started(tmp_path, workers) as driver:
        driver.send_signal(signal.SIGKILL)
    before = study.load(tmp_path / "run")[1]
    ended = [trial for trial in before if trial.state not in ("running", "waiting")]
    interrupted = [trial for trial in before if trial.state == "running"]
    assert ended
    assert any(trial.rungs for trial in interrupted)

    resumed = [*command(tmp_path, workers), "--resume"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout + done.stderr
    after = check_finished(tmp_path, workers)
    for trial in ended:
        assert after[trial.number] == trial
    for trial in interrupted:
        # The kill may have come while the trial was drawn.
        assert trial.params.items() <= after[trial.number].params.items()
        assert trial.rungs.items() <= after[trial.number].rungs.items()


@pytest.mark.timeout(840)
@pytest.mark.parametrize(("workers", "killed"), [(1, "train"), (2, "RayTrainWorker")])
def test_after_a_kill_of_a_trial_or_its_worker_the_search_goes_on_by_itself(
    workers: int, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    psutil = pytest.importorskip("psutil", reason="psutil finds the trial's process")
    with started(tmp_path, workers) as driver:
        children = psutil.Process(driver.pid).children(recursive=True)
        titles = {child: " ".join(child.cmdline()) for child in children}
        busy = [c for c, title in titles.items() if title.startswith("ray::") and killed in title]
        assert busy, titles
        busy[0].kill()
        assert driver.wait(timeout=550) == 0
    check_finished(tmp_path, workers)
