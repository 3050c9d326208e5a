"""Reader that follows a graph from its input to its logits and compares the network with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raycrt.errors import InvalidInput, require
from raycrt.foreign.assembly import network_of
from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.foreign.modules.layers import Step
from raycrt.foreign.modules.rescaling import Rescaling
from raycrt.foreign.onnx_graph import activations, file, layers, tail
from raycrt.foreign.onnx_graph.graph import TYPES, Graph
from raycrt.foreign.onnx_graph.nodes import described, type_name
from raycrt.foreign.onnx_graph.reference import Reference
from raycrt.networks.network import Network


def read(
    path: Path, input_shape: Sequence[int] | None = None, images: Tensor | None = None
) -> Network:
    """The network in an ONNX file; it takes inputs in the order in which the file does.

    `input_shape` is the shape of one input, for files that leave it open; where the file states
    another, it must hold the same numbers in the same order. The network is compared with the
    reference evaluator of the onnx package, at some of the `images` (n, ...) and at random inputs.
    Raises `InvalidInput` for a damaged file, a node that is not supported, and outputs that differ
    beyond rounding.
    """
    model = file.load(path)
    graph = Graph(model)
    require(graph.type in TYPES, "input is of floating point", type=type_name(graph.type))
    shape = file.input_shape(model.graph, input_shape)
    logits, after = tail.before(graph)
    steps, result = _Steps(graph).to(logits, (1, *shape))
    network, binary = network_of(steps, (math.prod(shape),))
    tail.check(graph, after, result)
    reference = Reference(model, logits, predicts=len(after) > 0 and not binary)
    require_same_function(
        reference,
        network,
        shape,
        given=images,
        dtype=TYPES[graph.type],
        tail=_one_output if binary else None,
    )
    return network


def _one_output(logits: Tensor) -> Tensor:
    return logits[:, 1:]


class _Steps:
    """Follows a graph from its input. `shapes` and `numbers` are those of the results reached, as
    `Step` counts them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.found: list[Step] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.numbers: dict[str, int] = {}
        # Activations by the result that they give, with what they act on.
        self.activations: dict[str, tuple[activations.Match, str]] = {}
        self.inside: set[str] = set()

    def to(self, logits: str, shape: tuple[int, ...]) -> tuple[list[Step], tuple[int, ...]]:
        """The steps from an input of `shape`, a batch of one, to the logits, and their shape."""
        self.graph.end(logits)
        self._reach(self.graph.input, 0, shape)
        while logits not in self.shapes:
            self._take(self._next())
        shape = self.shapes[logits]
        if math.prod(shape) != max(shape, default=1):
            raise InvalidInput(f"the output must be a number for each class, but is {shape}")
        return self.found, shape

    def _next(self) -> Any:
        """The first node that uses what is reached and is not done."""
        done = self.shapes.keys() | self.inside
        for node in self.graph.nodes:
            used = [name for name in node.input if name in self.numbers]
            if node.output[0] not in done and (used or node.output[0] in self.activations):
                return node
        raise InvalidInput(
            f"the output must be computed from the input, but no node uses {self.graph.input!r}"
        )

    def _reach(self, tensor: str, number: int, shape: tuple[int, ...]) -> None:
        self.shapes[tensor], self.numbers[tensor] = shape, number
        self.graph.reach(tensor, shape)
        for found in activations.matches(self.graph, tensor, len(shape)):
            self.activations[found.output] = found, tensor
            self.inside |= found.inside

    def _take(self, node: Any) -> None:
        place, output = described(node), node.output[0]
        used = [name for name in node.output[1:] if name and self.graph.consumers(name)]
        if used:
            raise InvalidInput(f"{place} must have one output that is used, but has {used}")
        if output in self.activations:
            found, tensor = self.activations[output]
            number = self._add(place, Elementwise(found.activation), self.numbers[tensor])
            self._reach(output, number, self.shapes[tensor])
            return
        given = [name for name in node.input if name in self.numbers]
        if len(given) == 2 and node.op_type in ("Add", "Sub"):
            self._reach(output, self._sum(node, given), self.shapes[given[0]])
            return
        tensor, number = given[0], self.numbers[given[0]]
        maps, shape = layers.convert(self.graph, node, tensor, self.shapes[tensor])
        alone = number == len(self.found) > 0 and len(self.graph.consumers(tensor)) == 1
        for map_ in maps:
            if not alone or not layers.with_bias(self.found[-1].layer, map_):
                number = self._add(place, map_, number)
        self._reach(output, number, shape)

    def _sum(self, node: Any, given: list[str]) -> int:
        """The sum or the difference of two results."""
        place, shapes = described(node), [self.shapes[name] for name in given]
        if shapes[0] != shapes[1]:
            raise InvalidInput(f"{place}: tensors that are added must have one shape: {shapes}")
        first, second = (self.numbers[name] for name in given)
        if node.op_type == "Sub":
            second = self._add(place, Rescaling(factor=-1.0), second)
        return self._add(place, nn.Identity(), first, second)

    def _add(self, place: str, layer: nn.Module, *given: int) -> int:
        self.found.append(Step(place=place, layer=layer, given=given))
        return len(self.found)
