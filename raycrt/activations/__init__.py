"""Activations by name: twice differentiable functions with proved slope and curvature ranges."""

from __future__ import annotations

from collections.abc import Callable

from raycrt.activations.conformance import check
from raycrt.activations.functions import FIXED, softplus
from raycrt.activations.record import NUMPY, ULPS, Activation, slope_error, value_error
from raycrt.errors import InvalidInput, nearest, require

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "KINK",
    "NUMPY",
    "ULPS",
    "Activation",
    "activation",
    "check",
    "refusal",
    "slope_error",
    "softplus",
    "value_error",
]


class _Registry(dict[str, Activation]):
    """Activations by name; one that is added is checked first (`check`), what ships by tests."""

    def __setitem__(self, name: str, record: Activation) -> None:
        require(name == record.name, "an activation is entered under its name", name=record.name)
        check(record)
        super().__setitem__(name, record)


# Why ReLU and its relatives are not among them.
KINK = "a kink has no second derivative to bound; softplus is a smooth alternative"
# Activations with a sharpness beta; their records in `ACTIVATIONS` have beta = 1.
FAMILIES: dict[str, Callable[[float], Activation]] = {"softplus": softplus}
ACTIVATIONS: dict[str, Activation] = _Registry(
    {"softplus": softplus(), **{record.name: record for record in FIXED}}
)


def activation(name: str, beta: float = 1.0) -> Activation:
    """The activation called `name`; `beta` is the sharpness of those in `FAMILIES`, else unused.

    `InvalidInput` if no activation has that name.
    """
    if name not in ACTIVATIONS:
        raise InvalidInput(f"activation {refusal(name)}, but got {name!r}")
    return FAMILIES[name](beta) if name in FAMILIES else ACTIVATIONS[name]


def refusal(name: str) -> str:
    """What the name of an activation must be, and why `name` is none: the end of a sentence."""
    kink = name.lower() == "hardtanh" or "relu" in name.lower()
    why = f" ({KINK})" if kink else nearest(name, ACTIVATIONS)
    return f"must be one of {sorted(ACTIVATIONS)}{why}"
