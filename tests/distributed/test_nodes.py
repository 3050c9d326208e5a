"""A cluster that loses a node: neither a training nor a row of a certification is lost."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from raycrt import data
from raycrt.bounds.curvature import margin_curvature
from raycrt.distributed import certification
from raycrt.distributed.training import lines
from raycrt.distributed.training import train as training
from raycrt.distributed.training.worker import Stopped
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.training.loop import Metrics
from tests.chaos import harness

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]

SPEC = validate(
    {
        "model": {"width": 16, "depth": 2},
        "train": {"objective": "standard", "epochs": 400},
        "data": {"limit": 300},
        "run": {"workers": 1, "cpus_per_worker": 1},
    }
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The driver's node, which has no CPU, and two that have one each."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_training_outlives_every_node_but_its_drivers(cluster: Cluster, tmp_path: Path) -> None:
    started = [lines.start() for _ in range(6)]
    where = [
        line.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
        for line in started
    ]
    assert set(ray.get(where)) == {ray.get_runtime_context().get_node_id()}
    del started

    seen: list[int] = []
    lost: list[str] = []

    def watch(epoch: int, metrics: Metrics) -> None:
        """Once there is a checkpoint the node that trains goes without a word."""
        seen.append(epoch)
        if lost or training.last_checkpoint(tmp_path) is None:
            return
        free = ray._private.state.available_resources_per_node()
        busy = [node for node in cluster.worker_nodes if not free[node.node_id].get("CPU")]
        if busy:
            lost.append(busy[0].node_id)
            cluster.remove_node(busy[0], allow_graceful=False)

    training.fit(SPEC, tmp_path, watch=watch)
    assert lost
    assert seen[-1] == SPEC.train.epochs


def test_a_training_goes_on_with_the_nodes_that_are_there(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_SIZES", 1.0)
    sizes: list[float] = []
    epochs: list[int] = []
    fewer, stop = threading.Event(), threading.Event()

    def watch(epoch: int, metrics: Metrics) -> None:
        epochs.append(epoch)
        if sizes[-1:] == [metrics["workers"]]:
            return
        sizes.append(metrics["workers"])
        if sizes == [2]:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        elif sizes == [2, 1]:
            fewer.set()
        else:
            stop.set()

    spec = SPEC.override({"run.workers": {"low": 1, "high": 2}, "train.epochs": 100_000})
    with ThreadPoolExecutor(1) as pool:
        fit = partial(training.fit, watch=watch, stop=stop, seconds_between_checkpoints=0)
        ended = pool.submit(fit, spec, tmp_path)
        try:
            assert fewer.wait(240)
            # Only the main thread can start a node.
            cluster.add_node(num_cpus=1)
            with pytest.raises(Stopped):
                ended.result()
        finally:
            stop.set()
    assert sizes == [2, 1, 2]
    assert all(after <= before + 1 for before, after in itertools.pairwise(epochs))


def test_a_certification_outlives_a_node_that_certifies(cluster: Cluster, tmp_path: Path) -> None:
    spec = harness.prepared(tmp_path)
    spec = spec.override({"run.cpus_per_worker": 0.75})
    model, _ = checkpoint.load_model(tmp_path / "run" / "train")
    lost: list[int] = []

    def watch(progress: certification.Progress) -> None:
        """One of two nodes goes while both have shards."""
        if not lost and progress.counted > 400:
            lost.append(progress.counted)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    certification.certify(
        model,
        spec,
        data.test_rows(spec.data),
        tmp_path / "run" / "certificates",
        digest=checkpoint.weights_hash(model),
        curvature=margin_curvature(model),
        watch=watch,
    )
    assert lost
    harness.check(tmp_path, harness.twin(tmp_path, spec))
