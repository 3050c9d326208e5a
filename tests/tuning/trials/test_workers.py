"""Trials on several workers: the same numbers, stopped in order, and no lack of room for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.state import list_actors

from raycrt import InvalidInput, data
from raycrt.distributed.session import session
from raycrt.distributed.training import train
from raycrt.specs import Spec, validate
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.search.searcher import StudySearch
from raycrt.tuning.trials import resources, space, store, trial, workers
from raycrt.tuning.trials.trial import Measurement
from tests.conftest import TINY

SPEC = validate(yaml.safe_load(TINY)).override(
    {"train.epochs": 60, "search.rungs": [5, 30], "search.radius": [0.1, 0.3]}
)


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"memory": 8e9, **node}} for node in resources]


@pytest.mark.parametrize(
    ("cluster", "values", "expected"),
    [
        (nodes({"CPU": 2}), {"search.workers": 2}, 1),
        (nodes({"CPU": 2}), {"search.workers": 2, "run.cpus_per_worker": 0.5}, 2),
        (nodes({"CPU": 3}, {"CPU": 3}), {"search.workers": 2, "run.cpus_per_worker": 2}, 1),
        (nodes({"CPU": 8, "GPU": 1}), {"search.workers": 2, "run.gpus_per_worker": 0.1}, 4),
        (nodes({"CPU": 64, "memory": 1.2e9}), {"search.workers": 2}, 2),
        (nodes({"CPU": 64, "memory": 0}), {}, 64),
        (nodes({"CPU": 9, "team": 2}, {"CPU": 9}), {"run.resources": {"team": 1}}, 2),
        (nodes({"CPU": 64}), {"search.concurrent": 3}, 3),
        (nodes({"CPU": 2}), {"search.concurrent": 3}, 2),
    ],
)
def test_as_many_trials_run_as_there_is_room_for_all_their_workers(
    cluster: list[dict[str, Any]],
    values: dict[str, Any],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: cluster)
    assert resources.trials(SPEC.override(values)) == expected


def test_a_cluster_without_room_for_one_trial_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes({"CPU": 2}))
    for values in ({"search.workers": 3}, {"run.gpus_per_worker": 1}):
        assert resources.trials(SPEC.override(values)) == 0
        with pytest.raises(InvalidInput, match="the cluster has room for one trial"):
            resources.check(SPEC.override(values))


def test_trials_are_drawn_as_nodes_join_and_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = nodes({"CPU": 1})
    monkeypatch.setattr(ray, "nodes", lambda: cluster)
    record = store.start_study(SPEC, tmp_path, space.points(SPEC))
    draws = StudySearch(SPEC, tmp_path, record, partial(resources.trials, SPEC))
    assert draws.suggest("a") is not None
    assert draws.suggest("b") is None
    cluster += nodes({"CPU": 1})
    assert draws.suggest("b") is not None
    assert draws.suggest("c") is None
    cluster.clear()
    draws.on_trial_complete("a", error=True)
    assert draws.suggest("c") is None
    cluster += nodes({"CPU": 2})
    assert draws.suggest("c") is not None
    assert len(record.get_trials()) == 3


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    torch.set_num_threads(1)
    with session(2):
        yield


def held() -> list[dict[str, Any]]:
    """The placement groups that hold resources or wait for them."""
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def evaluated(
    spec: Spec, folder: Path, but: dict[int, Any] | None = None
) -> list[tuple[int, Measurement]]:
    """What workers report, by epoch; after the epochs that `but` names something happens."""
    found: list[tuple[int, Measurement]] = []

    def report(measured: Measurement) -> None:
        found.append((measured.epoch, replace(measured, seconds=0.0)))
        (but or {}).get(measured.epoch, lambda: None)()

    workers.evaluate(spec, folder, report)
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_one_worker_gives_the_numbers_of_a_trial_in_its_own_process(
    two_cpus: None, tmp_path: Path
) -> None:
    alone: list[tuple[int, Measurement]] = []
    trial.evaluate(
        SPEC,
        data.load(SPEC.data),
        report=lambda m, end: alone.append((m.epoch, replace(m, seconds=0.0))),
    )
    assert evaluated(SPEC, tmp_path) == alone
    assert [epoch for epoch, _ in alone] == [5, 30, 60]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(560)
def test_workers_that_were_stopped_or_killed_go_on_as_if_nothing_had_been(
    two_cpus: None, tmp_path: Path
) -> None:
    spec = SPEC.override({"search.workers": 2})
    whole = evaluated(spec, tmp_path / "whole")

    def stop() -> None:
        raise SystemExit(0)

    killed: list[int] = []

    def kill() -> None:
        if killed:
            return
        alive = list_actors(
            address=ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")]
        )
        killed.append(next(a.pid for a in alive if "RayTrainWorker" in a.class_name))
        os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(SystemExit):
        evaluated(spec, tmp_path / "stopped", {5: stop})
    assert held() == []
    # Workers do not wait to be stopped: they may have passed the next rung before.
    resumed = evaluated(spec, tmp_path / "stopped")
    assert resumed
    assert resumed == whole[-len(resumed) :]
    assert dict(evaluated(spec, tmp_path / "killed", {5: kill})) == dict(whole)
    assert killed


@pytest.mark.cluster
@pytest.mark.slow
def test_a_trial_waits_for_workers_that_another_search_holds_for_longer_than_ray_does(
    two_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    others = placement_group([{"CPU": 1}, {"CPU": 1}])
    ray.get(others.ready())
    inner = train.fit
    attempts: list[Any] = []

    def fit(*given: Any, **options: Any) -> Any:
        attempts.append(given)
        if len(attempts) == 2:  # Ray has given up once
            remove_placement_group(others)
        return inner(*given, **options)

    monkeypatch.setattr(train, "fit", fit)
    spec = SPEC.override({"search.workers": 2, "train.epochs": 2, "search.rungs": [1]})
    assert [epoch for epoch, _ in evaluated(spec, tmp_path)] == [1, 2]
    assert len(attempts) == 2


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(560)
def test_a_search_of_trials_with_workers_ends_though_tune_is_slow_and_room_is_short(
    two_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that ASHA stops free their workers for the next; a result that Tune takes long to
    look at holds no trial up that has ended meanwhile."""
    inner = StudySearch.on_trial_result

    def slowly(self: StudySearch, trial_id: str, result: dict[str, Any]) -> None:
        time.sleep(4)
        inner(self, trial_id, result)

    monkeypatch.setattr(StudySearch, "on_trial_result", slowly)
    spec = SPEC.override(
        {
            "search.workers": 2,
            "search.trials": 5,
            "search.reduction": 2,
            "search.finalists": 1,
            "search.seeds": 1,
            "search.algorithm": "random",
            "train.epochs": 4,
            "search.rungs": [1],
        }
    )
    driver.run(spec, tmp_path)
    trials = study.trials(store.load_study(spec, tmp_path), spec)
    assert [trial.number for trial in trials] == list(range(5))
    assert trials[0].complete
    assert "TrainingDiverged" in trials[1].reason
    assert {trial.state for trial in trials} == {"complete", "pruned", "failed"}
    assert 0 in {row["number"] for row in study.finalists(tmp_path)}
    assert not list((tmp_path / "states").iterdir())
    deadline = time.monotonic() + 100
    while held() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert held() == []
