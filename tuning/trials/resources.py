"""The resources that a trial needs, and the number of trials that the cluster has room for."""

from __future__ import annotations

from raycrt.distributed.room import for_worker, nodes, require_usable_gpus, times
from raycrt.errors import require
from raycrt.specs import Spec

# The process that starts a Ray Train run waits and computes nothing: memory, and no CPU that a
# worker could need.
_DRIVER = {"memory": 512.0 * 2**20}


def for_process(spec: Spec) -> dict[str, float]:
    """The resources of a trial's process, which trains itself or only starts its workers, by Ray's
    names."""
    return for_worker(spec.run) if spec.search.workers == 1 else dict(_DRIVER)


def trials(spec: Spec) -> int:
    """How many trials may run at a time: all that fit, each with all of its workers on whole nodes,
    as the cluster is now (nodes may join and leave), and no more than `search.concurrent`."""
    need, found = for_worker(spec.run), nodes()
    room = sum(times(node, need) for node in found) // spec.search.workers
    if spec.search.workers > 1:
        room = min(room, sum(times(node, _DRIVER) for node in found))
    return room if spec.search.concurrent is None else min(room, spec.search.concurrent)


def check(spec: Spec) -> None:
    """Raise `InvalidInput` if not even one trial fits: its workers would wait forever."""
    require_usable_gpus(spec.run)
    need = for_worker(spec.run)
    require(
        trials(spec) >= 1,
        "the cluster has room for one trial",
        workers=spec.search.workers,
        each=need,
        nodes=[{name: node.get(name, 0) for name in need} for node in nodes()],
    )
