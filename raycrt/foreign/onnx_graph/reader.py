"""Reader that follows a graph from its input to its logits and compares the network with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from raycrt.errors import InvalidInput, require
from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.foreign.modules.layers import Step
from raycrt.foreign.modules.reader import network_of
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
    Raises `InvalidInput` for a damaged file, a graph that is not one chain, a node that is not
    supported, and outputs that differ beyond rounding.
    """
    model = file.load(path)
    graph = Graph(model)
    require(graph.type in TYPES, "input is of floating point", type=type_name(graph.type))
    shape = file.input_shape(model.graph, input_shape)
    logits, after = tail.before(graph)
    steps, result = _followed(graph, shape, logits)
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


def _followed(
    graph: Graph, shape: tuple[int, ...], logits: str
) -> tuple[list[Step], tuple[int, ...]]:
    """The maps and activations up to the logits, and the shape of the logits."""
    tensor, shape = graph.input, (1, *shape)
    steps: list[Step] = []
    while tensor != logits:
        graph.reach(tensor, shape)
        found = activations.match(graph, tensor, len(shape))
        if found is not None:
            layer = Elementwise(found.activation)
            steps.append(Step(place=described(found.node), layer=layer))
            tensor = found.output
            continue
        node = _only_consumer(graph, tensor)
        maps, shape = layers.convert(graph, node, tensor, shape)
        for map_ in maps:
            if not steps or not layers.with_bias(steps[-1].layer, map_):
                steps.append(Step(place=described(node), layer=map_))
        tensor = node.output[0]
    if math.prod(shape) != max(shape, default=1):
        raise InvalidInput(f"the output must be a number for each class, but is {shape}")
    return steps, shape


def _only_consumer(graph: Graph, tensor: str) -> Any:
    nodes = graph.consumers(tensor)
    if len(nodes) != 1:
        kinds = ", ".join(described(node) for node in nodes)
        raise InvalidInput(
            f"a graph must be one chain, but {len(nodes)} nodes use {tensor!r}: {kinds}"
        )
    (node,) = nodes
    used = [name for name in node.output[1:] if name and graph.consumers(name)]
    if used:
        raise InvalidInput(f"{described(node)} must have one output that is used, but has {used}")
    return node
