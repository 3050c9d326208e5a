"""Following a graph from its input to its logits, and comparing what was read with it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raycrt.elementwise import Elementwise
from raycrt.equivalence import require_same_function
from raycrt.errors import InvalidInput, require
from raycrt.network import Network
from raycrt.onnx_graph import activations, file, layers, tail
from raycrt.onnx_graph.graph import TYPES, Graph
from raycrt.onnx_graph.nodes import described, type_name
from raycrt.onnx_graph.reference import Reference
from raycrt.sequential import as_network


def read(
    path: Path, input_shape: Sequence[int] | None = None, images: Tensor | None = None
) -> Network:
    """The network in an ONNX file; it takes inputs in the order in which the file does.

    `input_shape` is the shape of one input, for files that leave it open; where the file states
    another, it must hold the same numbers in the same order. What was read is compared with what
    the reference evaluator of the onnx package computes, at some of the `images` (n, ...) and at
    random inputs. Raises `InvalidInput` for a damaged file, a graph that is not one chain, a node
    that is not supported, and outputs that differ beyond rounding.
    """
    model = file.load(path)
    graph = Graph(model)
    require(graph.type in TYPES, "input is of floating point", type=type_name(graph.type))
    shape = file.input_shape(model.graph, input_shape)
    logits, after = tail.before(graph)
    found, result = _follow(graph, shape, logits)
    tail.check(graph, after, result)
    network = as_network(found, (math.prod(shape),))
    saturates = any(node.op_type == "Sigmoid" for node in after)
    reference = Reference(model, logits, predicts=len(after) > 0 and not saturates)
    require_same_function(reference, network, shape, given=images, dtype=TYPES[graph.type])
    return network


def _follow(
    graph: Graph, shape: tuple[int, ...], logits: str
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The maps and activations up to the logits, named by their nodes, and the logits' shape."""
    tensor, shape, steps = graph.input, (1, *shape), _Steps()
    while tensor != logits:
        graph.reach(tensor, shape)
        found = activations.match(graph, tensor, len(shape))
        if found is not None:
            steps.add(found.node, Elementwise(found.activation))
            tensor = found.output
            continue
        node = _only_consumer(graph, tensor)
        maps, shape = layers.convert(graph, node, tensor, shape)
        for map_ in maps:
            steps.add(node, map_)
        tensor = node.output[0]
    if math.prod(shape) != max(shape):
        raise InvalidInput(f"the output must be a number for each class, but is {shape}")
    return nn.Sequential(steps.named), shape


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


class _Steps:
    """Layers by the names of their nodes."""

    def __init__(self) -> None:
        self.named: OrderedDict[str, nn.Module] = OrderedDict()

    def add(self, node: Any, layer: nn.Module) -> None:
        """Append a layer, or put what it adds into the one before."""
        last = next(reversed(self.named.values()), None)
        if not layers.with_bias(last, layer):
            name = (node.name or f"{node.op_type}_{len(self.named)}").replace(".", "_")
            self.named[f"{len(self.named)}:{name}"] = layer
