"""Registers objectives and optimizers for the spec by name, with the options they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from raycrt.errors import require
from raycrt.specs import TrainSpec

Kind = TypeVar("Kind", bound=type[Any])


def register(
    registry: dict[str, Any], name: str, *, uses: tuple[str, ...] = ()
) -> Callable[[Kind], Kind]:
    """Enter the decorated class into `registry` as `name`, and set its `uses`: the keys of `train`
    that have an effect where it is chosen.

    A key that some classes of a registry use and others do not is refused where one of the others
    is chosen, and a search draws it only for those that use it. `InvalidInput` where the name is
    taken or `uses` names no key of `train`.
    """
    require(name not in registry, "a name is registered once", name=name)
    for option in uses:
        require(option in TrainSpec.model_fields, "uses names keys of train", uses=option)

    def enter(kind: Kind) -> Kind:
        kind.uses = frozenset(uses)
        registry[name] = kind
        return kind

    return enter
