"""Nodes after the logits that keep the largest of them the largest."""

from __future__ import annotations

import math
from typing import Any

from raycrt.errors import InvalidInput
from raycrt.foreign.onnx_graph.graph import Graph
from raycrt.foreign.onnx_graph.nodes import attributes, described

_OVER_CLASSES = ("ArgMax", "LogSoftmax", "Softmax")


def before(graph: Graph) -> tuple[str, list[Any]]:
    """The tensor of the logits, and the nodes from there to the output.

    These may be softmax, log-softmax, sigmoid, products with and quotients by positive numbers,
    which are strictly increasing, and at the end an arg max, the prediction itself.
    """
    tensor = graph.output
    tail: list[Any] = []
    while (node := _producer(graph, tensor)) is not None:
        if node.op_type == "ArgMax" and tail:
            break
        if node.op_type not in (*_OVER_CLASSES, "Identity", "Sigmoid") and not _positive(
            graph, node
        ):
            break
        tail.append(node)
        tensor = next(name for name in node.input if name not in graph.constants)
    return tensor, tail[::-1]


def check(graph: Graph, tail: list[Any], shape: tuple[int, ...]) -> None:
    """`InvalidInput` unless softmax and arg max are taken over all logits of one input, which have
    `shape`, and a sigmoid of a single one."""
    outputs = math.prod(shape)
    for node in tail:
        if node.op_type == "Sigmoid" and outputs > 1:
            raise InvalidInput(
                f"{described(node)} at the end must have one output, but has {outputs}: they need "
                "not exclude each other"
            )
        if node.op_type in _OVER_CLASSES:
            axis, over = _over(graph, node, shape)
            if over != outputs or outputs < 2:
                raise InvalidInput(
                    f"{described(node)} must be over several classes, all of one input, but is "
                    f"over axis {axis} of {shape}"
                )


def _over(graph: Graph, node: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The axis of a node, and the count of numbers that it is applied over."""
    if node.op_type == "ArgMax":
        axis = attributes(node).get("axis", 0)
        return axis, shape[axis]
    if graph.opset < 13:  # Applied over all axes from this one on.
        axis = attributes(node).get("axis", 1)
        return axis, math.prod(shape[axis:])
    axis = attributes(node).get("axis", -1)
    return axis, shape[axis]


def _producer(graph: Graph, tensor: str) -> Any:
    return next((node for node in graph.nodes if tensor in node.output), None)


def _positive(graph: Graph, node: Any) -> bool:
    """Whether a node is a product with, or a quotient by, one positive number."""
    if node.op_type not in ("Mul", "Div"):
        return False
    values = [graph.constants.get(name) for name in node.input]
    if node.op_type == "Div" and values[0] is not None:
        return False
    numbers = [value for value in values if value is not None]
    return len(numbers) == 1 and numbers[0].size == 1 and 0 < float(numbers[0].item()) < math.inf
