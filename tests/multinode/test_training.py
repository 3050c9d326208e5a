"""A host dies while a model is trained: the weights are those of an undisturbed training."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycrt.distributed.training import train as training
from raycrt.networks.checkpoint import load_model, weights_hash
from tests.cluster.conftest import Run
from tests.multinode.cluster import Cluster
from tests.multinode.conftest import Say
from tests.multinode.deaths import survived

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(560)]

SETTINGS = (
    *("--set", "model.width=16", "--set", "data.limit=300", "--set", "train.epochs=150"),
    *("--workers", "2"),
)


def test_a_training_outlives_a_host(
    cluster: Cluster, laptop: Run, tmp_path: Path, say: Say
) -> None:
    there, here = cluster.shared / "training", tmp_path / "laptop"
    ended = survived(
        cluster,
        *("train", "--out", str(there), *SETTINGS),
        actor="RayTrainWorker",
        begun=lambda: training.last_checkpoint(there / "train") is not None,
        replaced=True,
    )
    assert ended.code == 0, ended.said
    say(f"ended {ended.seconds:.0f} s after the death")
    assert "three" in cluster.having("RayTrainWorker", "DEAD")

    local = laptop("raycrt", "train", "--out", str(here), *SETTINGS)
    assert local.returncode == 0, local.stdout + local.stderr
    models = [load_model(run / "train")[0] for run in (there, here)]
    assert weights_hash(models[0]) == weights_hash(models[1])
