"""A model's graph of affine layers, activations and sums as a network, which is a chain.

Between two stages of the network, everything that is needed later is one vector of blocks: results
of activations and what is passed on beside them. A result of the model is a sum of affine maps of
these blocks. Each activation makes a stage: the layer `[W; I]`, W the map of the result that it
acts on and I that of the blocks needed later, and the activation on the rows of W alone. A result
that is passed on, and no block, is made one by such a layer with nothing after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest

import torch
from torch import nn

from raycrt.activations import Activation
from raycrt.errors import InvalidInput
from raycrt.foreign.modules.layers import Shape, Step, activation_of, affine_of
from raycrt.networks.layers.affine import AffineMap, Chain, Dense, links_of
from raycrt.networks.layers.diagonal import Identity
from raycrt.networks.layers.residual import DirectSum, Selection, Stack, Sum
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity


def network_of(steps: Sequence[Step], shape: Shape) -> tuple[Network, bool]:
    """The network of the layers, and whether its two classes come from a single output.

    `shape` is that of one input, None where the first layer states it.
    """
    made = _Assembly(steps, shape)
    for number in range(len(steps)):
        made.add(number)
    last = made.last()
    if not any(made.hidden) or last is None:
        raise InvalidInput(
            "a model must have affine layers with an activation between them and end in an affine "
            f"layer, but got {[type(step.layer).__name__ for step in steps]}"
        )
    binary = last.out_features == 1
    network = Network(*_flat([*made.maps, _with_zero(last) if binary else last], made.hidden))
    # One type that holds all weights exactly: that of pools differs, and that of biases may.
    types = {tensor.dtype for tensor in network.state_dict().values()}
    return network.to(reduce(torch.promote_types, types)).eval(), binary


@dataclass(frozen=True, kw_only=True)
class _Value:
    """A result of the model: the sum of affine maps of some blocks, by the blocks' numbers."""

    terms: Mapping[int, tuple[AffineMap, ...]]
    shape: Shape

    @property
    def is_block(self) -> bool:
        return list(self.terms.values()) == [()]


class _Assembly:
    """Adds one step after the other. `values` holds the results that are needed later, by number:
    0 for the input, k + 1 for that of step k."""

    def __init__(self, steps: Sequence[Step], shape: Shape) -> None:
        self.steps = steps
        self.acting = [activation_of(step) for step in steps]
        self.maps: list[AffineMap] = []
        self.hidden: list[Nonlinearity | None] = []
        # The size of the input, 0 while it is not known, and of each block.
        self.features = 0 if shape is None else math.prod(shape)
        self.sizes = [self.features]
        self.values = {0: _Value(terms={0: ()}, shape=shape)}
        # The step that needs a result last; the model's output is needed after all of them.
        self.last_use = {n: k for k, step in enumerate(steps) for n in step.given}
        self.last_use[len(steps)] = len(steps)

    def add(self, number: int) -> None:
        step, found = self.steps[number], self.acting[number]
        for given in step.given:
            if self._is_kept(given, number):
                self._settle(given, number)
        value = self._sum(step, [self.values[given] for given in step.given])
        if found is not None:
            acted = self._shape(value, step)
            self._advance(value, found, number + 1)
            value = _Value(terms={0: ()}, shape=acted)
        else:
            maps, shape = affine_of(step, value.shape)
            if value.shape is None and shape is not None:
                self.features = maps[0].in_features if maps else math.prod(shape)
                self.sizes[0] = self.features
            if maps and len(value.terms) > 1:
                self._settle(step.given[0], number)
                value = self.values[step.given[0]]
            terms = {block: (*chain, *maps) for block, chain in value.terms.items()}
            value = _Value(terms=terms, shape=shape)
        self.values[number + 1] = value

    def last(self) -> AffineMap | None:
        """The layer that makes the output; None if no affine one does."""
        value = self.values[len(self.steps)]
        return None if value.is_block else self._rows(value)

    def _is_kept(self, given: int, number: int) -> bool:
        """Whether step `number` needs a result that is no block, and so does one after the next
        activation: it is passed on, rather than computed again."""
        after = next((k for k in range(number, len(self.steps)) if self.acting[k]), math.inf)
        return not self.values[given].is_block and self.last_use[given] > after

    def _settle(self, given: int, number: int) -> None:
        """Make a result a block, by a layer with nothing after it, before step `number`."""
        value = self.values[given]
        del self.values[given]
        self._advance(value, None, number)
        self.values[given] = _Value(terms={0: ()}, shape=value.shape)

    def _advance(self, value: _Value, activation: Activation | None, number: int) -> None:
        """Add the stage that makes `value` the first block, on which the `activation` acts, and
        passes on what steps from `number` on need."""
        left = {n: v for n, v in self.values.items() if self.last_use.get(n, -1) >= number}
        kept = sorted({block for v in left.values() for block in v.terms})
        size = self._size(value)
        layer = self._layer(value, kept)
        self.maps.append(layer)
        self.hidden.append(
            None
            if activation is None
            else Nonlinearity(activation=activation, active=size, width=layer.out_features)
        )
        place = {block: 1 + k for k, block in enumerate(kept)}
        self.values = {
            n: _Value(terms={place[b]: chain for b, chain in v.terms.items()}, shape=v.shape)
            for n, v in left.items()
        }
        self.sizes = [size, *(self.sizes[block] for block in kept)]

    def _layer(self, value: _Value, kept: list[int]) -> AffineMap:
        """`value`, then the blocks `kept`."""
        if not kept:
            return self._rows(value)
        total, blocks = sum(self.sizes[block] for block in kept), list(range(len(self.sizes)))
        used = sorted(value.terms)
        if used + kept == blocks:
            return DirectSum([self._added(value), Identity(total)])
        passed = Identity(total) if kept == blocks else Selection(self.sizes, kept)
        return Stack([self._rows(value), passed])

    def _rows(self, value: _Value) -> AffineMap:
        """`value` as a map of all blocks."""
        used, added = sorted(value.terms), self._added(value)
        if len(used) == len(self.sizes):
            return added
        links = added.links if isinstance(added, Chain) else [added]
        chosen = Selection(self.sizes, used)
        return chosen if value.is_block else Chain([chosen, *links])

    def _added(self, value: _Value) -> AffineMap:
        """`value` as a map of the blocks that it needs."""
        parts = [_chain(value.terms[block], self.sizes[block]) for block in sorted(value.terms)]
        return parts[0] if len(parts) == 1 else Sum(parts)

    def _size(self, value: _Value) -> int:
        block, chain = next(iter(value.terms.items()))
        return chain[-1].out_features if chain else self.sizes[block]

    def _sum(self, step: Step, given: Sequence[_Value]) -> _Value:
        if len(given) == 1:
            return given[0]
        known = [self._shape(value, step) for value in given]
        if len(set(known)) > 1:
            raise InvalidInput(f"{step.place}: tensors that are added must have one shape: {known}")
        terms: dict[int, tuple[AffineMap, ...]] = {}
        for value in given:
            for block, chain in value.terms.items():
                both = [terms[block], chain] if block in terms else [chain]
                parts = [_chain(each, self.sizes[block]) for each in both]
                size = parts[0].out_features
                terms[block] = (
                    (Stack(parts), Sum([Identity(size), Identity(size)])) if both[1:] else chain
                )
        return _Value(terms=terms, shape=known[0])

    def _shape(self, value: _Value, step: Step) -> tuple[int, ...]:
        """The shape of a value; only that of the input may have to be found in the layers."""
        if value.shape is None and not self.features:
            raise InvalidInput(f"{step.place}: input_shape must be given")
        return value.shape or (self.features,)


def _chain(maps: Sequence[AffineMap], size: int) -> AffineMap:
    """The maps one after the other; of `size` features if there are none."""
    if not maps:
        return Identity(size)
    return maps[0] if len(maps) == 1 else Chain(maps)


def _flat(
    maps: Sequence[AffineMap], hidden: Sequence[Nonlinearity | None]
) -> tuple[list[AffineMap], list[Nonlinearity | None]]:
    """The maps with the links of chains in their place, and what is between them."""
    found: list[AffineMap] = []
    between: list[Nonlinearity | None] = []
    for layer, acts in zip_longest(maps, hidden):
        links = links_of([layer])
        found += links
        between += [*[None] * (len(links) - 1), acts]
    return found, between[:-1]


def _with_zero(last: AffineMap) -> AffineMap:
    """The logits (0, z) of one output z."""
    with torch.device("meta"):
        made = Dense(last.in_features if isinstance(last, Dense) else 1, 2)
    if isinstance(last, Dense):
        weight, bias = last.weight.detach(), last.bias.detach()
        made.weight = nn.Parameter(torch.cat([torch.zeros_like(weight), weight]))
        made.bias = nn.Parameter(torch.cat([torch.zeros_like(bias), bias]))
        return made
    # Of any floating type: those of the layers may differ as yet.
    like = next(t for t in (*last.parameters(), *last.buffers()) if t.is_floating_point())
    made.weight = nn.Parameter(like.new_tensor([[0.0], [1.0]]))
    made.bias = nn.Parameter(like.new_zeros(2))
    return Chain([*(last.links if isinstance(last, Chain) else [last]), made])
