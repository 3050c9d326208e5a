"""Whole searches under Tune: the grid, the median rule, logs elsewhere, too many failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raycrt.distributed.session import session
from raycrt.specs import validate
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.trials import space, store
from tests.conftest import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SPEC = validate(yaml.safe_load(TINY)).override(
    {"search.points": [], "search.finalists": 0, "search.scheduler": "none"}
)


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Iterator[None]:
    torch.set_num_threads(1)
    with session(2):
        yield


def test_a_grid_is_run_through_with_its_logs_at_a_uri_and_is_finished_then(tmp_path: Path) -> None:
    domains = {
        "model.depth": {"low": 2, "high": 3},
        "model.activation": {"choices": ["softplus", "tanh"]},
    }
    spec = SPEC.override(
        {
            "search.algorithm": "grid",
            "search.space": domains,
            "search.directory": (tmp_path / "logs").as_uri(),
        }
    )
    home = tmp_path / "run"
    for resume in (False, True):
        driver.run(spec, home, resume=resume)
        trials = study.trials(store.load_study(spec, home), spec)
        assert [trial.number for trial in trials] == list(range(4))
        assert all(trial.complete for trial in trials)
        assert trials[0].params == space.defaults(spec)
        drawn = [trial.params for trial in trials]
        assert all(point in drawn for point in space.grid(spec))
        [part] = (tmp_path / "logs" / store.identity(home)).iterdir()
        logged = {file.parent.name for file in part.glob("trial-*/progress.csv")}
        assert logged == {f"trial-{number:05d}" for number in range(4)}
        assert not (home / driver.TUNE).exists()


def test_the_median_rule_stops_the_trial_that_learns_nothing(tmp_path: Path) -> None:
    spec = SPEC.override(
        {
            "search.scheduler": "median",
            "search.space": {"train.learning_rate": {"choices": [0.01, 0.008, 0.006, 1e-9]}},
            "search.points": [{"train.learning_rate": rate} for rate in (0.008, 0.006, 1e-9)],
            "search.trials": 4,
            "search.concurrent": 1,
            "train.epochs": 6,
            "search.rungs": [5],
        }
    )
    driver.run(spec, tmp_path)
    trials = study.trials(store.load_study(spec, tmp_path), spec)
    assert [trial.state for trial in trials] == [*["complete"] * 3, "pruned"]
    assert [trial.epochs for trial in trials] == [6, 6, 6, 5]


def test_a_search_gives_up_after_too_many_failures_and_says_why(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "search.space": {"train.learning_rate": {"choices": [0.01, 1e30]}},
        "search.points": [{"train.learning_rate": 1e30}],
        "search.failures": 0,
        "search.concurrent": 1,
    }
    spec = SPEC.override(values)
    with pytest.raises(driver.SearchFailed, match=r"1 trials failed .* TrainingDiverged"):
        driver.run(spec, tmp_path)
    assert len(study.trials(store.load_study(spec, tmp_path), spec)) == 2
    assert not (tmp_path / study.BEST).exists()
