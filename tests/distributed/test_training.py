"""Training on Ray's workers: what is left when one is killed, and when the loss is NaN."""

import os
import signal

import psutil
import pytest
import torch

from raycrt import data
from raycrt.distributed.session import session
from raycrt.distributed.training import process_group
from raycrt.distributed.training import train as training
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.training.loop import TrainingDiverged

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]

SPEC = validate(
    {
        "model": {"width": 24},
        "train": {
            "epochs": 30,
            "batch_size": 64,
            "radius": 0.4,
            "learning_rate": 0.005,
            "averaging": 0.9,
        },
        "data": {"limit": 300},
        "run": {"workers": 2, "cpus_per_worker": 0.5},
    }
)


@pytest.fixture(scope="module", autouse=True)
def ray_running():
    with session(2):
        yield


def test_rows_held_out_are_named_so_and_assessed_at_four_epochs(tmp_path):
    seen = {}
    training.fit(
        SPEC, tmp_path, rows="train", watch=lambda epoch, found: seen.update({epoch: found})
    )
    assert list(seen) == list(range(1, 31))
    assessed = [epoch for epoch, found in seen.items() if "validation/clean" in found]
    assert assessed == [8, 15, 23, 30]
    assert not any(key.startswith("training_rows/") for key in seen[30])


def test_workers_on_one_node_meet_on_loopback(tmp_path):
    seen = tmp_path / "seen"

    def measure(end):
        ours = psutil.Process().net_connections("tcp")
        listening = [use.laddr for use in ours if use.status == psutil.CONN_LISTEN]
        seen.write_text("\n".join(f"{place.ip} {place.port}" for place in listening))
        return {}

    training.fit(SPEC.override({"train.epochs": 1}), tmp_path, measure=measure)
    places = [line.split() for line in seen.read_text().splitlines()]
    # Besides torch's store and gloo there is Ray's own port, which asks for a token.
    assert sorted(ip for ip, _ in places) == ["127.0.0.1", "127.0.0.1", "::"]
    assert any(int(port) in process_group.PORTS for ip, port in places if ip != "::")


def test_a_killed_worker_changes_no_bit(tmp_path):
    whole = training.fit(SPEC, tmp_path / "whole")
    killed, seen = [], []

    def kill_a_worker(epoch, metrics):
        """Once there is a checkpoint one of the workers dies without a word."""
        import ray
        from ray.util.state import list_actors

        seen.append(epoch)
        if killed or training.last_checkpoint(tmp_path / "killed") is None:
            return
        ours = ray.get_runtime_context().gcs_address
        actors = list_actors(address=ours, filters=[("state", "=", "ALIVE")], limit=1000)
        workers = [actor for actor in actors if "RayTrainWorker" in actor.class_name]
        if workers:
            killed.append(epoch)
            os.kill(workers[0].pid, signal.SIGKILL)

    after = training.fit(
        SPEC, tmp_path / "killed", watch=kill_a_worker, seconds_between_checkpoints=0
    )
    assert killed and killed[0] < seen[-1] == SPEC.train.epochs
    assert checkpoint.weights_hash(after) == checkpoint.weights_hash(whole)
    assert checkpoint.weights_hash(checkpoint.load_model(tmp_path / "killed")[0]) == (
        checkpoint.weights_hash(whole)
    )


def test_a_worker_that_dies_before_all_have_met_is_replaced(tmp_path, monkeypatch):
    died = tmp_path / "died"

    def dies(rank, *others):
        if rank == 0:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        process_group._join(rank, *others)

    class Backend(process_group._Backend):
        def on_start(self, worker_group, backend_config):
            with pytest.MonkeyPatch.context() as patch:
                if not died.exists():
                    patch.setattr(process_group, "_join", dies)
                super().on_start(worker_group, backend_config)

    class Group(process_group.ProcessGroup):
        backend_cls = Backend

    monkeypatch.setattr(training, "ProcessGroup", Group)
    # The workers take all CPUs, so that there is no room for others beside them.
    training.fit(SPEC.override({"run.cpus_per_worker": 1, "train.epochs": 1}), tmp_path)
    assert died.exists()


def test_after_a_nan_the_run_ends_and_goes_on_from_its_last_good_checkpoint(tmp_path):
    training.fit(SPEC.override({"train.epochs": 2}), tmp_path)
    more = SPEC.override({"train.epochs": 15})
    with pytest.raises(TrainingDiverged, match="at step 2 of epoch 3"):
        training.fit(more.override({"train.learning_rate": 1e30}), tmp_path)
    kept = training.last_checkpoint(tmp_path)
    assert kept is not None and checkpoint.load_state(kept)["epoch"] == 2
    assert checkpoint.load_model(kept)[0].bounded()
    epochs = []
    network = training.fit(more, tmp_path, watch=lambda epoch, metrics: epochs.append(epoch))
    assert epochs[0] == 3
    validation = data.load(SPEC.data).validation
    right = network(validation.images).argmax(1) == validation.labels
    assert float(right.to(torch.float64).mean()) > 0.6
