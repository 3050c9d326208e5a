"""The options of a spec that have an effect: those its objective, optimizer and activation use.

The conditions are derived from what these state: an option is conditional if some names of a key
use it and others do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raycrt.activations import ACTIVATIONS, FAMILIES
from raycrt.errors import InvalidInput, nearest
from raycrt.specs import Spec, identity
from raycrt.training.objectives import OBJECTIVES
from raycrt.training.optimizers import OPTIMIZERS

_DEFAULTS = Spec()
# Options that another value switches on: the key of that value, and the test that it must pass.
_SWITCHED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "train.linear_scale": ("train.linear_layers", lambda layers: layers > 0),
    "train.augmentation.until": ("train.augmentation", lambda augmentation: augmentation.moves),
}


@dataclass(frozen=True)
class Condition:
    """An option has an effect only where `key` of the spec has one of `names`."""

    key: str
    names: frozenset[str]


def choices() -> dict[str, dict[str, frozenset[str]]]:
    """The keys that name a choice: each name with the paths of the options that it uses."""
    return {
        "model.activation": {
            name: frozenset({"model.beta"} if name in FAMILIES else ()) for name in ACTIVATIONS
        },
        **{
            key: {
                name: frozenset(f"train.{option}" for option in kind.uses)
                for name, kind in registry.items()
            }
            for key, registry in (("train.objective", OBJECTIVES), ("train.optimizer", OPTIMIZERS))
        },
    }


def conditions() -> dict[str, Condition]:
    """By path, the condition of each option that only has an effect for some names of a key."""
    found = {}
    for key, uses in choices().items():
        for path in sorted(frozenset().union(*uses.values())):
            names = frozenset(name for name, used in uses.items() if path in used)
            if len(names) < len(uses):
                found[path] = Condition(key, names)
    return found


def override(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """`spec` with `values` set, and every option without effect at its default."""
    idle = {
        path: _DEFAULTS.value(path)
        for path, condition in conditions().items()
        if values.get(condition.key, spec.value(condition.key)) not in condition.names
    }
    changed = spec.override({**values, **idle})
    return changed.override({path: _DEFAULTS.value(path) for path in _switched_off(changed)})


def _switched_off(spec: Spec) -> list[str]:
    """The options that are set and that another value of `spec` leaves without effect."""
    return [
        path
        for path, (key, on) in _SWITCHED.items()
        if spec.value(path) != _DEFAULTS.value(path) and not on(spec.value(key))
    ]


def check(spec: Spec, searched: Mapping[str, frozenset[str]] | None = None) -> None:
    """Raise `InvalidInput` where a name is unknown, or an option that is set has no effect.

    An option at its default is not set. `searched` maps keys to the names that trials may have in
    place of the spec's own: an option has an effect if one of them uses it.
    """
    conditional = conditions()
    for key, uses in choices().items():
        names = (searched or {}).get(key, frozenset({spec.value(key)}))
        for name in sorted(names, key=str):
            if name not in uses:
                raise InvalidInput(
                    f"{key} must be one of {sorted(uses)}{nearest(str(name), uses)}, "
                    f"but got {name!r}"
                )
        idle = {
            path: condition
            for path, condition in conditional.items()
            if condition.key == key
            and not names & condition.names
            and spec.value(path) != _DEFAULTS.value(path)
        }
        if idle:
            raise InvalidInput(_sentence(spec, key, names, idle))
    for path in _switched_off(spec):
        key, _ = _SWITCHED[path]
        if not any(drawn.startswith(key) for drawn in spec.search.space):
            raise InvalidInput(
                f"{path}={spec.value(path)} has no effect without {key}: leave it out of the file"
            )


def _sentence(spec: Spec, key: str, names: frozenset[str], idle: Mapping[str, Condition]) -> str:
    unused = " and ".join(
        f"{path}={identity.as_option(spec.value(path))} (an option of {listed(condition.names)})"
        for path, condition in idle.items()
    )
    reset = " ".join(f"--set {path}={identity.as_option(_DEFAULTS.value(path))}" for path in idle)
    return (
        f"{key}={listed(names)} does not use {unused}: leave {'it' if len(idle) == 1 else 'them'} "
        f"out of the file, or go back to the default by {reset}"
    )


def listed(names: frozenset[str]) -> str:
    """`names` joined for use in a sentence."""
    *most, last = sorted(names)
    return f"{', '.join(most)} or {last}" if most else last
