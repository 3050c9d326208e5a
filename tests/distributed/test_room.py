"""Workers for which there is no room: refused where it stays so, told where nodes may join."""

import pytest
import ray

from raycrt.distributed import room
from raycrt.errors import InvalidInput
from raycrt.specs import RunSpec


@pytest.fixture
def cluster(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return nodes


TOO_MUCH = {
    "workers": (RunSpec(workers=3), "run.workers=3 with 1 CPU each, .* 2 CPU: room for 2;"),
    "CPUs": (RunSpec(workers=1, cpus_per_worker=3), "with 3 CPU each, .* 2 CPU"),
    "a GPU": (
        RunSpec(workers=1, gpus_per_worker=1),
        "with 1 CPU and 1 GPU each, .* 2 CPU, 0 GPU: room for 0",
    ),
    "of a team": (
        RunSpec(workers=1, resources={"team": 1}),
        "with 1 CPU and 1 team each, .* 2 CPU, 0 team: room for 0",
    ),
    "part of a GPU": (RunSpec(workers=1, gpus_per_worker=0.5), "and 0.5 GPU each"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_machine_without_room_refuses_what_is_asked_and_a_cluster_waits(
    cluster, name, monkeypatch, capsys
):
    run, said = TOO_MUCH[name]
    with pytest.raises(InvalidInput, match=f"the machine must have room for .*{said}"):
        room.check(run)
    assert not capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    room.check(run)
    told = capsys.readouterr().out
    assert told.startswith(f"waiting for room for run.workers={run.workers} with ")
    assert len(told.splitlines()) == 1 and "the cluster's nodes have 2 CPU" in told


@pytest.mark.parametrize(
    "run",
    [
        RunSpec(workers=2),
        RunSpec(workers=1, cpus_per_worker=2),
        RunSpec(workers=6, cpus_per_worker=1 / 3),
    ],
)
def test_what_fits_exactly_is_not_held_up(cluster, run, capsys):
    room.check(run)
    assert not capsys.readouterr().out


def test_workers_are_on_whole_nodes_that_live(cluster):
    cluster += [
        {"Alive": True, "Resources": {"CPU": 3.0, "team": 1.0}},
        {"Alive": False, "Resources": {"CPU": 9.0}},
    ]
    room.check(RunSpec(workers=2, cpus_per_worker=2))
    room.check(RunSpec(workers=2, resources={"team": 0.5}))
    with pytest.raises(InvalidInput, match="2 CPU; 3 CPU: room for 2"):
        room.check(RunSpec(workers=3, cpus_per_worker=2))
