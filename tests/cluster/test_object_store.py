"""Runs on an object store: the same numbers as on a disk, and nothing is lost by kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycrt.certification.table import storage
from raycrt.distributed.training.train import last_checkpoint
from raycrt.networks.checkpoint import load_model, load_state, weights_hash
from raycrt.system.places.outputs import DRIVER
from raycrt.system.places.storage import Place, place
from raycrt.tuning.analysis import study
from tests.conftest import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
RAYCRT = Path(sys.executable).parent / "raycrt"


@pytest.fixture
def run(object_store: str, tmp_path: Path) -> Place:
    return place(f"{object_store}/{tmp_path.name}")


def raycrt(*words: object) -> str:
    done = subprocess.run([RAYCRT, *map(str, words)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def killed(*words: object, when: Callable[[], bool]) -> Iterator[None]:
    """A command that gets SIGKILL as soon as `when` holds."""
    process = subprocess.Popen(
        [RAYCRT, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while not when() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None and when()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    yield


@pytest.mark.timeout(840)
def test_a_run_is_the_same_on_a_store_as_on_a_disk(run: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    raycrt("train", "--recipe", recipe, "--out", tmp_path)
    raycrt("certify", "--out", tmp_path)
    demo = ("demo", "--recipe", recipe, "--set", "search.trials=2", "--out", run / "demo")
    raycrt(*demo)
    assert raycrt(*demo).count("finished before") == 3
    raycrt("train", "--recipe", recipe, "--out", run)
    raycrt("certify", "--out", run)
    hashes = [weights_hash(load_model(out / "train")[0]) for out in (run, tmp_path)]
    assert hashes[0] == hashes[1]
    tables = [storage.read(out / "certificates")[0] for out in (run, tmp_path)]
    assert tables[0].num_rows == 360 and tables[0].equals(tables[1])
    assert "each is proved" in raycrt("verify", run, "--workers", 2)
    assert f"{run}/report/report.md" in raycrt("report", run)
    raycrt("bundle", run, "--out", run / "run.zip")
    assert "each is proved" in raycrt("verify", run / "run.zip")
    assert list((run / "train" / "tensorboard").iterdir())
    assert not [file for file in run.glob("**/*") if file.name == DRIVER]


@pytest.mark.timeout(840)
def test_a_training_goes_on_after_a_kill(run: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text(TINY.replace("epochs: 3", "epochs: 300"))
    words = ("train", "--recipe", recipe, "--out", run)
    with killed(*words, when=lambda: last_checkpoint(run / "train") is not None):
        kept = last_checkpoint(run / "train")
    assert kept is not None and load_state(kept)["epoch"] < 300
    assert (run / "train" / DRIVER).is_file()
    raycrt(*words)
    assert load_state(last_checkpoint(run / "train"))["epoch"] == 300
    assert load_model(run / "train")[1].train.epochs == 300


@pytest.mark.timeout(840)
def test_a_search_goes_on_after_a_kill(run: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text(TINY.replace("epochs: 3", "epochs: 200").replace("rungs: [1]", "rungs: [20]"))
    values = ("search.trials=4", "search.scheduler=none", "search.seeds=1")
    options = [word for value in values for word in ("--set", value)]
    words = ("search", "--recipe", recipe, "--out", run, *options)

    def caught() -> bool:
        if not (run / "search" / study.TRIALS).is_file():
            return False
        trials = study.load(run)[1]
        past = [trial for trial in trials if trial.state == "running" and trial.rungs]
        return bool(past) and any(trial.complete for trial in trials)

    with killed(*words, when=caught):
        before = study.load(run)[1]
    raycrt(*words, "--resume")
    after = study.load(run)[1]
    assert [trial.number for trial in after] == list(range(4))
    assert {trial.state for trial in after} <= {"complete", "failed"}
    for trial in before:
        if trial.state in ("complete", "failed"):
            assert after[trial.number] == trial
        else:
            assert trial.rungs.items() <= after[trial.number].rungs.items()
    assert (run / "search" / study.BEST).is_file()
    assert not (run / "search" / "states").exists()
