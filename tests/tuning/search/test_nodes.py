"""A search on a cluster whose nodes come and go."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from raycrt import InvalidInput
from raycrt.specs import validate
from raycrt.tuning.analysis import study
from raycrt.tuning.analysis.study import TrialRecord
from raycrt.tuning.search import driver
from raycrt.tuning.trials import store
from tests.conftest import TINY

SPEC = validate(yaml.safe_load(TINY)).override(
    {
        "train.epochs": 150,
        "search.rungs": [20],
        "search.scheduler": "none",
        "search.trials": 8,
        "search.seeds": 1,
    }
)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(560)
def test_a_search_uses_a_node_that_joins_and_outlives_one_that_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")

    def trials() -> list[TrialRecord]:
        try:
            return study.trials(store.load_study(SPEC, tmp_path), SPEC)
        except InvalidInput:  # not made yet
            return []

    def until_running(count: int) -> None:
        deadline = time.monotonic() + 150
        while sum(trial.state == "running" for trial in trials()) != count:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    # Ray starts nodes in the main thread alone.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(driver.run, SPEC, tmp_path)
            until_running(1)
            node = cluster.add_node(num_cpus=1)
            until_running(2)
            cluster.remove_node(node, allow_graceful=False)
            done.result()
    finally:
        ray.shutdown()
        cluster.shutdown()
    ended = trials()
    assert [trial.number for trial in ended] == list(range(8))
    assert all(trial.complete or "TrainingDiverged" in trial.reason for trial in ended)
