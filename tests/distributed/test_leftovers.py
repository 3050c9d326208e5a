"""What a dead actor has reserved becomes free; what others have reserved stays."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from raycrt.distributed.training import leftovers

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


class Holder:
    def hold(self) -> PlacementGroup:
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready())
        return group


class TrainController(Holder):
    pass


def state(group: PlacementGroup) -> str:
    return placement_group_table(group)["state"]


def test_only_the_groups_of_dead_controllers_are_removed() -> None:
    made = [
        ray.remote(num_cpus=0)(kind).remote() for kind in (TrainController, TrainController, Holder)
    ]
    dead, alive, other = made
    groups = [ray.get(holder.hold.remote()) for holder in made]
    kept = groups[1:]
    try:
        ray.kill(other)
        ray.kill(dead)
        deadline = time.monotonic() + 30
        while state(groups[0]) != "REMOVED":
            assert time.monotonic() < deadline
            leftovers.free()
            time.sleep(0.05)
        kept.append(placement_group([{"CPU": 0.5}]))
        leftovers.free()
        assert [state(group) for group in kept[:2]] == ["CREATED"] * 2
        assert state(kept[2]) != "REMOVED"
        assert ray.get(alive.__ray_ready__.remote())
    finally:
        for group in kept:
            remove_placement_group(group)
