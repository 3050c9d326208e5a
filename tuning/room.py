"""What a trial needs of the cluster, and how many trials the cluster has room for."""

from __future__ import annotations

import ray

from raycrt.errors import require
from raycrt.spec import Spec

# The process that starts a Ray Train run waits and computes nothing: memory, and no CPU that a
# worker could need.
_DRIVER = {"memory": 512.0 * 2**20}


def for_process(spec: Spec) -> dict[str, float]:
    """Resources of the process of a trial: where it trains, or only starts its workers."""
    return _for_worker(spec) if spec.search.workers == 1 else dict(_DRIVER)


def trials(spec: Spec) -> int:
    """How many trials may run at a time: all that fit, each with all of its workers on whole nodes,
    as the cluster is now (nodes may join and leave), and no more than `search.concurrent`."""
    need, nodes = _for_worker(spec), _nodes()
    room = sum(_times(node, need) for node in nodes) // spec.search.workers
    if spec.search.workers > 1:
        room = min(room, sum(_times(node, _DRIVER) for node in nodes))
    return room if spec.search.concurrent is None else min(room, spec.search.concurrent)


def check(spec: Spec) -> None:
    """Raise `InvalidInput` where not even one trial fits: its workers would wait for ever."""
    need = _for_worker(spec)
    require(
        trials(spec) >= 1,
        "the cluster has room for one trial",
        workers=spec.search.workers,
        each=need,
        nodes=[{name: node.get(_ray_name(name), 0) for name in need} for node in _nodes()],
    )


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _for_worker(spec: Spec) -> dict[str, float]:
    need = {"cpu": spec.run.cpus_per_worker, "gpu": spec.run.gpus_per_worker}
    return {name: amount for name, amount in need.items() if amount}


def _times(node: dict[str, float], need: dict[str, float]) -> int:
    """How often `need` fits on a node."""
    return min(int(node.get(_ray_name(name), 0) / amount + 1e-9) for name, amount in need.items())


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()
