"""Resources that stay reserved when the controller of a Ray Train run dies."""

from __future__ import annotations

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import (  # type: ignore[attr-defined]
    ActorTableData,
    PlacementGroupTableData,
)
from ray.util.placement_group import PlacementGroup, remove_placement_group

_CONTROLLER = "TrainController"


def free() -> None:
    """Remove the placement groups of this job whose maker, a controller of Ray Train, has died.

    Ray removes them only once the job ends too. An actor of Ray Train's does it earlier, but knows
    of a group from when its workers have started: a controller whose node dies before leaves the
    resources of all its workers reserved, for which its successor would wait forever.
    """
    job = ray.get_runtime_context().get_job_id()
    for stored in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(stored)
        removed = group.state == PlacementGroupTableData.REMOVED
        if group.creator_job_id.hex() == job and not removed and _is_orphan(group):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _is_orphan(group: PlacementGroupTableData) -> bool:
    # One that a driver made has no such actor, and Ray notes it as dead.
    maker = ray.ActorID(group.creator_actor_id)
    if maker.is_nil() or group.is_detached or not group.creator_actor_dead:
        return False
    # An actor that was restarted stays noted as dead there.
    stored = state.get_actor_info(maker)
    actor = None if stored is None else ActorTableData.FromString(stored)
    return (
        actor is not None and actor.class_name == _CONTROLLER and actor.state == ActorTableData.DEAD
    )
