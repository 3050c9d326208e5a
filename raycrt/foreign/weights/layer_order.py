"""The order of stored layers, fixed by their names or stated, and never guessed.

Names that differ only in numbers are in the order of these. With other names among them, an order
is accepted if it is the only one that keeps those orders and fits the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from raycrt.errors import InvalidInput
from raycrt.foreign.weights.stored_layers import Shape, StoredBatchNorm, StoredLayer
from raycrt.specs import ModelSpec

# Steps of the search for an order, after which the names are reported to fix none.
_TRIES = 10_000
# Names that raycrt gives itself need not agree with the order in the file.
_OWN = re.compile(r"(.*\.)?maps\.\d+")

Stages = list[list[StoredLayer]]


def stages(
    layers: Sequence[StoredLayer],
    shape: Shape,
    spec: ModelSpec,
    *,
    stated: Sequence[str] | None = None,
    ordered: bool = True,
) -> Stages:
    """`layers` in the order in which they are applied, with the activation between two stages.

    `stated` names the layers, `a+b` those of one stage. Otherwise the names have to fix the order
    for inputs of `shape` (empty: not known), and the order of `layers` must be the same if they
    are `ordered`. Raises `InvalidInput`.
    """
    if stated is not None:
        found = _stated(layers, stated)
        _check_fit([layer for stage in found for layer in stage], shape, spec)
        return found
    order = _fixed(layers, shape, spec)
    if ordered and order != list(layers) and not all(_OWN.fullmatch(n.name) for n in layers):
        raise InvalidInput(
            f"names and the order in which layers are stored must agree, but the names say "
            f"{_names(order)}, and stored are {_names(layers)}; {_ASK}"
        )
    return _with_activations(order)


_ASK = "state the order by layers (--layers first,second,...)"


def _stated(layers: Sequence[StoredLayer], stated: Sequence[str]) -> Stages:
    left = {layer.name: layer for layer in layers}
    found: Stages = []
    for stage in stated:
        found.append([])
        for name in (part.strip() for part in stage.split("+")):
            fits = [n for n in left if n == name] or [n for n in left if n.endswith(f".{name}")]
            if len(fits) != 1:
                raise InvalidInput(
                    f"layers must name each of {_names(layers)} once, but {name!r} names "
                    f"{', '.join(fits) if fits else 'none that is left'}"
                )
            found[-1].append(left.pop(fits[0]))
    if left:
        raise InvalidInput(f"layers must name every layer, but {', '.join(left)} is left out")
    return found


def _fixed(layers: Sequence[StoredLayer], shape: Shape, spec: ModelSpec) -> list[StoredLayer]:
    """The only order that fits the numbers in the names and the shapes."""
    kinds: dict[str, list[StoredLayer]] = {}
    for layer in layers:
        kinds.setdefault(re.sub(r"\d+", "#", layer.name), []).append(layer)
    chains = [sorted(chain, key=_numbers) for chain in kinds.values()]
    if len(chains) == 1:
        _check_fit(chains[0], shape, spec)
        return chains[0]
    found: list[list[StoredLayer]] = []
    begun: list[tuple[list[StoredLayer], list[int], Shape]] = [([], [0] * len(chains), shape)]
    for _ in range(_TRIES):
        if not begun or len(found) > 1:
            break
        order, taken, now = begun.pop()
        if len(order) == len(layers):
            found.append(order)
        for k, chain in enumerate(chains):
            if taken[k] == len(chain):
                continue
            after = chain[taken[k]].after(now, spec)
            if after is not None:
                counts = [n + (j == k) for j, n in enumerate(taken)]
                begun.append(([*order, chain[taken[k]]], counts, after))
    if len(found) == 1 and not begun:
        return found[0]
    if not found and not begun:
        raise InvalidInput(
            f"shapes must fit together, but no order of {_listing(layers)} does{_of(shape, spec)}; "
            f"{_ASK} where numbers in names are in another, or choose a part of the file (--key)"
        )
    raise InvalidInput(
        f"names must fix the order of the layers, but those of {_listing(layers)} do not, and more "
        f"than one order fits their shapes; {_ASK}, or choose a part of the file (--key)"
    )


def _check_fit(order: Sequence[StoredLayer], shape: Shape, spec: ModelSpec) -> None:
    given = shape
    for layer in order:
        after = layer.after(shape, spec)
        if after is None:
            raise InvalidInput(
                f"shapes must fit together, but {layer.name} does not take {shape} in the order "
                f"{_listing(order)}{_of(given, spec)}"
            )
        shape = after


def _with_activations(order: list[StoredLayer]) -> Stages:
    """`order` split at the activations: one between two consecutive weights, none elsewhere.

    Batch normalisation may be on either side of it. In a Sequential an activation has a number of
    its own, so that layers with consecutive numbers have none between them.
    """
    steps = [_step(a, b) for a, b in pairwise(order)]
    weights = [k for k, layer in enumerate(order) if not isinstance(layer, StoredBatchNorm)]
    starts, certain = [0], True
    if len(weights) == len(order):
        starts = list(weights)
        known = {step > 1 for step in steps if step is not None}
        certain = len(known) < 2
    else:
        outside = steps[: weights[0]] + steps[weights[-1] :]
        certain = all(step == 1 for step in outside)
        for a, b in pairwise(weights):
            between = steps[a:b]
            gaps = [a + 1 + k for k, step in enumerate(between) if step is not None and step > 1]
            found = gaps if b > a + 1 else [b]
            certain = certain and len(found) == 1 and (b == a + 1 or None not in between)
            starts += found
    if not certain:
        raise InvalidInput(
            f"layers must state where the activation stands among {_names(order)}: --layers with "
            "+ between those that have none between them, as in a+norm,b where it follows batch "
            "normalisation, or a,norm+b"
        )
    return [order[a:b] for a, b in pairwise([*starts, len(order)])]


def _step(first: StoredLayer, second: StoredLayer) -> int | None:
    """Difference of the numbers of two layers of one Sequential; None for other layers."""
    (parent, _, a), (other, _, b) = first.name.rpartition("."), second.name.rpartition(".")
    return int(b) - int(a) if parent == other and a.isdecimal() and b.isdecimal() else None


def _numbers(layer: StoredLayer) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", layer.name))


def _names(layers: Sequence[StoredLayer]) -> str:
    return ", ".join(layer.name for layer in layers)


def _listing(layers: Sequence[StoredLayer]) -> str:
    return ", ".join(map(str, layers))


def _of(shape: Shape, spec: ModelSpec) -> str:
    """The input shape and the options of `spec` that decide whether shapes fit, for messages."""
    inputs = f", for inputs of shape {shape}" if shape else ""
    kernel = f"kernel {spec.kernel} and stride {spec.stride}" if spec.channels else ""
    return f"{inputs}{' with ' if kernel else ''}{kernel}"
