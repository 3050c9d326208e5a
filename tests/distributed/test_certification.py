"""Certification over actors: the same rows as in one process, whoever dies and however often."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from raycrt import Certifier, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.certification.table import storage
from raycrt.distributed import certification
from raycrt.errors import InvalidInput
from raycrt.evaluation.tally import summarise
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.training import loop

pytestmark = pytest.mark.cluster

SPEC = validate(
    {
        "model": {"width": 24},
        "train": {"epochs": 3, "batch_size": 64, "radius": 0.4},
        "data": {"limit": 130},
        "certify": {"batch_size": 20, "steps": 30},
        "run": {"workers": 2, "cpus_per_worker": 0.5},
    }
)


@pytest.fixture(scope="module")
def network():
    return loop.train(SPEC, data.load(SPEC.data).train)


@pytest.fixture(scope="module")
def twin(network):
    """The table that one process makes."""
    torch.set_num_threads(1)
    test = data.load(SPEC.data).test
    found = Certifier(network, steps=30, batch_size=20)(test.images)
    return storage.to_table(found, 0, test.labels.numpy(), test.images.numpy())


def _certify(network, test, out, **options):
    digest, curvature = checkpoint.weights_hash(network), margin_curvature(network)
    certification.certify(
        network, SPEC, data.test_rows(SPEC.data), out, digest=digest, curvature=curvature, **options
    )


def test_sharded_equals_unsharded_and_resumes(tmp_path, local_ray, network, twin):
    test = data.load(SPEC.data).test
    killed = []

    def kill_an_actor(rows: int) -> None:
        """After the first batch one of the actors dies without a word."""
        import ray
        from ray.util.state import list_actors

        if killed or rows == 0:
            return
        ours = ray.get_runtime_context().gcs_address
        actors = list_actors(address=ours, filters=[("state", "=", "ALIVE")], limit=1000)
        pids = [actor.pid for actor in actors if "(Certify)" in actor.class_name]
        if pids:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    _certify(network, test, tmp_path, watch=kill_an_actor)
    table, manifest = storage.read(tmp_path)
    assert killed
    assert table.equals(twin)
    assert manifest["complete"] and manifest["rows"] == 130

    files = sorted((tmp_path / storage.ROWS).glob("*.parquet"))
    kept = {file: file.stat().st_mtime_ns for file in files[2:]}
    for file in files[:2]:
        file.unlink()
    with pytest.raises(InvalidInput, match="as many certificates as images"):
        storage.read(tmp_path)
    _certify(network, test, tmp_path)
    assert storage.read(tmp_path)[0].equals(twin)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_rows_of_another_model_are_not_mixed_in(tmp_path, network):
    manifest = {"weights_sha256": "other", "spec": SPEC.model_dump(mode="json"), "rows": 1}
    storage.write_manifest(tmp_path, manifest)
    with pytest.raises(InvalidInput, match="of the same weights"):
        _certify(network, data.load(SPEC.data).test, tmp_path)


def test_rows_of_the_same_weights_under_another_activation_are_not_mixed_in(tmp_path, network):
    other = SPEC.override({"model.activation": "tanh"}).model_dump(mode="json")
    digest = checkpoint.weights_hash(network)
    storage.write_manifest(tmp_path, {"weights_sha256": digest, "spec": other, "rows": 1})
    with pytest.raises(InvalidInput, match=r"activation=tanh, but this command has .*=softplus"):
        _certify(network, data.load(SPEC.data).test, tmp_path)


def test_a_doubled_row_is_refused(tmp_path, twin):
    storage.write_manifest(tmp_path, {"rows": 130})
    (tmp_path / storage.ROWS).mkdir()
    storage.write_rows(tmp_path / storage.ROWS / "a.parquet", twin.slice(0, 129))
    storage.write_rows(tmp_path / storage.ROWS / "b.parquet", twin.slice(0, 1))
    with pytest.raises(InvalidInput, match="exactly once"):
        storage.read(tmp_path)


def test_the_summary_counts_right_predictions_with_a_larger_radius(twin):
    summary = summarise(twin, (0.1, 0.3))
    right = twin["prediction"].to_numpy() == twin["label"].to_numpy()
    assert summary.clean == pytest.approx(right.mean())
    expected = (right & (twin["radius"].to_numpy() > 0.3)).mean()
    assert summary.certified[0.3] == pytest.approx(expected)
    assert json.dumps(summary.certified)
    assert np.all(twin["radius"].to_numpy() <= twin["radius_runner_up"].to_numpy())
