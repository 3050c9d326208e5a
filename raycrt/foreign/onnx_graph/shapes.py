"""Nodes that change the shape, the order or the type of their input, but not its values."""

from __future__ import annotations

import math
from typing import Any

import torch

from raycrt.errors import InvalidInput, require
from raycrt.foreign.onnx_graph.graph import TYPES, Graph
from raycrt.foreign.onnx_graph.nodes import attributes, given, type_name
from raycrt.networks.layers.affine import AffineMap
from raycrt.networks.layers.diagonal import Permutation

Shape = tuple[int, ...]
# Maps and their output shape, with a batch of one in front.
Converted = tuple[list[AffineMap], Shape]


def flatten(graph: Graph, node: Any, shape: Shape) -> Converted:
    axis = attributes(node).get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [], (math.prod(shape[:axis]), math.prod(shape[axis:]))


def reshape(graph: Graph, node: Any, shape: Shape) -> Converted:
    sizes = graph.integers(node, 1)
    if not attributes(node).get("allowzero", 0):
        sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(sizes)]
    known = math.prod(size for size in sizes if size != -1)
    features = math.prod(shape)
    if sizes.count(-1) == 1 and known > 0:
        sizes = [features // known if size == -1 else size for size in sizes]
    if min(sizes, default=1) < 1 or math.prod(sizes) != features:
        raise InvalidInput(f"one input {shape} must keep its size, but becomes {sizes}")
    return [], tuple(sizes)


def squeeze(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = graph.integers(node, 1) if given(node, 1) else attributes(node).get("axes")
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    gone = ones if axes is None else [axis % len(shape) for axis in axes]
    require(set(gone) <= set(ones), "sizes taken away are 1", axes=gone, input=shape)
    return [], tuple(size for axis, size in enumerate(shape) if axis not in gone)


def unsqueeze(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = graph.integers(node, 1) if given(node, 1) else attributes(node)["axes"]
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    sizes = iter(shape)
    return [], tuple(1 if axis in new else next(sizes) for axis in range(rank))


def transpose(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = attributes(node).get("perm", list(range(len(shape)))[::-1])
    return reordered(shape, axes), tuple(shape[axis] for axis in axes)


def reordered(shape: Shape, axes: list[int]) -> list[AffineMap]:
    """The map that puts axes into another order; none if the features stay where they are."""
    places = torch.arange(math.prod(shape))
    order = places.view(shape).permute(axes).flatten()
    return [] if torch.equal(order, places) else [Permutation(order)]


def cast(graph: Graph, node: Any, shape: Shape) -> Converted:
    """A cast that is exact or rounds as float32 does; a coarser one would change the function."""
    to = attributes(node)["to"]
    allowed = (TYPES[graph.type], torch.float32, torch.float64)
    require(
        TYPES.get(to) in allowed, "cast to float32, float64 or the input's type", to=type_name(to)
    )
    return [], shape


def dropout(graph: Graph, node: Any, shape: Shape) -> Converted:
    training = given(node, 2) and bool(graph.constant(node, 2).any())
    require(not training, "not in training mode", training_mode=training)
    return [], shape


def nothing(graph: Graph, node: Any, shape: Shape) -> Converted:
    return [], shape
