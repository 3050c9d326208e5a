"""Maps side by side, each a list of maps that are applied one after the other, as such a list.

Rounding is counted map by map, so a part that is a product stays one: parts of different lengths
are filled up with identities, which round nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raycrt.errors import require
from raycrt.verify.computed import Affine, Computed, finite
from raycrt.verify.convolution import ENTRIES
from raycrt.verify.norms import gamma

# Largest matrix made of several, in entries: a skip connection has as many rows as it has columns.
_ENTRIES = 4 * ENTRIES
Chain = Sequence[Affine]
Place = Callable[[list[np.ndarray]], np.ndarray]


def identity(features: int) -> Affine:
    """x -> x."""
    return Affine(weight=np.ones(features), bias=np.zeros(features))


def stacked(chains: Sequence[Chain]) -> list[Affine]:
    """Chains of one input, their results one after the other: `[W_1; W_2; ...]`."""
    longest = max(map(len, chains))
    filled = [[*c, *[identity(c[-1].outputs)] * (longest - len(c))] for c in chains]
    first, *rest = zip(*filled, strict=True)
    inputs = first[0].inputs
    require(
        all(each.inputs == inputs for each in first),
        "stacked maps have one input",
        sizes=[each.inputs for each in first],
    )
    _check_size(sum(each.outputs for each in first), inputs)
    return [_beside(first, np.concatenate), *map(_direct_sum, rest)]


def summed(chains: Sequence[Chain]) -> list[Affine]:
    """The sum of chains of consecutive pieces of the input: `[W_1 W_2 ...]`."""
    longest = max(map(len, chains))
    filled = [[*[identity(c[0].inputs)] * (longest - len(c)), *c] for c in chains]
    *rest, last = zip(*filled, strict=True)
    outputs = last[0].outputs
    require(
        all(each.outputs == outputs for each in last),
        "added results have one size",
        sizes=[each.outputs for each in last],
    )
    return [*map(_direct_sum, rest), _sum(last)]


def direct(chains: Sequence[Chain]) -> list[Affine]:
    """Chains of consecutive pieces of the input, their results one after the other."""
    longest = max(map(len, chains))
    filled = [[*c, *[identity(c[-1].outputs)] * (longest - len(c))] for c in chains]
    return [_direct_sum(level) for level in zip(*filled, strict=True)]


def _direct_sum(maps: Chain) -> Affine:
    _check_size(sum(each.outputs for each in maps), sum(each.inputs for each in maps))
    return _beside(maps, _block_diagonal)


def _beside(maps: Chain, place: Place) -> Affine:
    """Maps whose results stand one after the other, their matrices put together by `place`."""
    full = [each.full() for each in maps]
    known = [each.known() for each in full]
    computed = Computed(
        weight=place([each.weight for each in known]),
        bias=np.concatenate([each.bias for each in known]),
        offsets=np.concatenate([each.offsets for each in known]),
        rounds=max(each.rounds for each in known),
        gain=sum(each.gain for each in known),
    )
    return Affine(
        weight=place([each.weight for each in full]),
        bias=np.concatenate([each.bias for each in full]),
        computed=computed if any(each.computed for each in full) else None,
    )


def _sum(maps: Chain) -> Affine:
    """`[W_1 W_2 ...]` and the sum of the biases, exact where at most one of them is not 0."""
    _check_size(maps[0].outputs, sum(each.inputs for each in maps))
    full = [each.full() for each in maps]
    known = [each.known() for each in full]
    weight = np.concatenate([each.weight for each in full], axis=1)
    with np.errstate(all="ignore"):  # What is not finite is refused as a whole.
        bias = np.sum([each.bias for each in full], axis=0)
        if not any(e.computed for e in full) and sum(bool(e.bias.any()) for e in full) <= 1:
            return Affine(weight=weight, bias=bias)
        sizes = np.sum([finite(np.abs(each.bias)) for each in full], axis=0)
        moved = gamma(len(maps) + 2) * sizes + np.sum([each.bias for each in known], axis=0)
        room = 1 + 2 * gamma(len(maps) + 8)
        computed = Computed(
            weight=np.concatenate([each.weight for each in known], axis=1),
            bias=np.where(np.isinf(bias), 0.0, moved * room),
            offsets=np.sum([each.offsets for each in known], axis=0) * room,
            # Another arithmetic adds each result with its offset to the others.
            rounds=max(each.rounds for each in known) + len(maps),
            gain=sum(each.gain for each in known),
        )
    return Affine(weight=weight, bias=bias, computed=computed)


def _block_diagonal(matrices: list[np.ndarray]) -> np.ndarray:
    rows, columns = (sum(each.shape[axis] for each in matrices) for axis in (0, 1))
    found, row, column = np.zeros((rows, columns)), 0, 0
    for each in matrices:
        found[row : row + len(each), column : column + each.shape[1]] = each
        row, column = row + len(each), column + each.shape[1]
    return found


def _check_size(rows: int, columns: int) -> None:
    require(
        rows * columns <= _ENTRIES,
        f"a checked matrix of maps side by side has at most {_ENTRIES} entries",
        entries=rows * columns,
    )
