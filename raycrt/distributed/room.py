"""Room for workers: an error if they can never fit, a message while they wait for nodes."""

from __future__ import annotations

import os

import ray

from raycrt.errors import InvalidInput
from raycrt.specs import RunSpec


def check(run: RunSpec) -> None:
    """Raise `InvalidInput` if `run.workers` do not fit into the Ray that this command started.

    Nodes may join a cluster, so there a line is printed instead, and the workers wait.
    """
    require_usable_gpus(run)
    need, found = for_worker(run), nodes()
    room = sum(times(node, need) for node in found)
    if room >= run.least:
        return
    each = " and ".join(f"{amount:g} {name}" for name, amount in need.items())
    there = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in need) for node in found)
    demand = f"room for run.workers={run.least} with {each} each"
    if may_grow():
        print(f"waiting for {demand}; the cluster's nodes have {there or 'nothing'}", flush=True)
        return
    raise InvalidInput(
        f"the machine must have {demand}, but it has {there}: room for {room}; "
        "--workers, --gpus-per-worker, run.cpus_per_worker or run.resources ask for less"
    )


def require_usable_gpus(run: RunSpec) -> None:
    """Raise `InvalidInput` if workers are to have GPUs that Ray finds on this machine, but torch,
    as its build and the driver are, does not. The nodes of a cluster may be others."""
    if run.gpus_per_worker and not may_grow() and any(node.get("GPU") for node in nodes()):
        # A verification on workers needs no torch.
        from raycrt.system import devices

        devices.of(run.gpus_per_worker)


def may_grow() -> bool:
    """Whether Ray is a cluster started elsewhere, which further nodes may join."""
    return bool(os.environ.get("RAY_ADDRESS"))


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def for_worker(run: RunSpec) -> dict[str, float]:
    """The resources that each worker needs, by Ray's names."""
    need = {"CPU": run.cpus_per_worker, "GPU": run.gpus_per_worker, **run.resources}
    return {name: amount for name, amount in need.items() if amount}


def times(node: dict[str, float], need: dict[str, float]) -> int:
    """How many times `need` fits on a node."""
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in need.items())


def for_actor(asked: float, actors: int) -> float:
    """CPUs for each of `actors` of Ray Data: as many as `asked`, less a share for its own tasks."""
    available = float(ray.cluster_resources().get("CPU", 1))
    return min(asked, max(0.25, (available - 0.5) / actors))
