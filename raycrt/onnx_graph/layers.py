"""Nodes that are affine maps of flat inputs, or only change the shape of what is flat anyway."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raycrt.affine import AffineMap, Dense
from raycrt.convolution import AveragePool, Convolution
from raycrt.diagonal import Normalization, Permutation, Scaling
from raycrt.errors import InvalidInput, require
from raycrt.onnx_graph.graph import TYPES, Graph
from raycrt.onnx_graph.nodes import attributes, described, expect, unsupported

Shape = tuple[int, ...]
# Maps and the shape of what they give, a batch of one in front.
Converted = tuple[list[AffineMap], Shape]


def convert(graph: Graph, node: Any, tensor: str, shape: Shape) -> Converted:
    """What `node` does to `tensor`, which has `shape`."""
    if node.op_type in _ELEMENTWISE:
        return _elementwise(graph, node, tensor, shape)
    make = _LAYERS.get(node.op_type)
    if make is None:
        raise unsupported(node)
    if node.input[0] != tensor or tensor in node.input[1:]:
        raise InvalidInput(f"{described(node)} must take the chain as input 0")
    return make(graph, node, shape)


def _elementwise(graph: Graph, node: Any, tensor: str, shape: Shape) -> Converted:
    """`Add`, `Sub`, `Mul` or `Div` of a constant for every feature, or `Neg`."""
    features = math.prod(shape)
    kind = node.op_type
    if kind == "Neg":
        return [_scaling(features, torch.float32, weight=-1.0)], shape
    if node.input[0] == node.input[1]:
        raise unsupported(node)
    front = node.input[0] == tensor
    value = graph.weights(node, 1 if front else 0)
    result = np.broadcast_shapes(tuple(value.shape), shape)
    if math.prod(result) != features:
        raise InvalidInput(
            f"{described(node)} must not repeat its input {shape}, but has a constant "
            f"{tuple(value.shape)}"
        )
    require(bool(value.isfinite().all()), f"{described(node)} has a finite constant")
    given = value.expand(result).reshape(-1)
    if kind == "Mul":
        scaling = _scaling(features, value.dtype, weight=given)
    elif kind == "Add":
        scaling = _scaling(features, value.dtype, bias=given)
    elif kind == "Sub":
        sign = 1.0 if front else -1.0
        scaling = _scaling(features, value.dtype, weight=sign, bias=-sign * given)
    elif front:
        require(bool((given != 0).all()), f"{described(node)} divides by numbers that are not 0")
        scaling = _scaling(features, value.dtype, divisor=given)
    else:
        raise unsupported(node)
    return [scaling], result


def _scaling(
    features: int,
    dtype: torch.dtype,
    weight: Tensor | float = 1.0,
    divisor: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
) -> Scaling:
    parts = [torch.as_tensor(part, dtype=dtype) for part in (weight, divisor, bias)]
    return Scaling(*(part.expand(features).clone() for part in parts))


def with_bias(layer: nn.Module | None, added: nn.Module) -> bool:
    """Take over what `added` adds into a `layer` that has no bias yet; whether that is all of it.

    Nothing is rounded: the bias was zero.
    """
    if not isinstance(layer, Dense | Convolution) or not isinstance(added, Scaling):
        return False
    if bool(layer.bias.any()) or not bool((added.weight == 1).all() & (added.divisor == 1).all()):
        return False
    channels = added.bias.detach().view(len(layer.bias), -1)
    if not bool((channels == channels[:, :1]).all()):
        return False
    layer.bias = nn.Parameter(channels[:, 0].clone())
    return True


def _gemm(graph: Graph, node: Any, shape: Shape) -> Converted:
    expect(node, alpha=1.0, beta=1.0, transA=0)
    weight = graph.weights(node, 1)
    require(weight.dim() == 2, f"{described(node)} has a matrix", shape=tuple(weight.shape))
    weight = weight if attributes(node).get("transB", 0) else weight.T
    _fits(node, shape == (1, weight.shape[1]), shape, weight)
    bias = graph.weights(node, 2).flatten() if _has(node, 2) else None
    if bias is not None:
        require(len(bias) in (1, len(weight)), f"{described(node)} has a bias for each output")
    return [_dense(weight, bias)], (1, len(weight))


def _matmul(graph: Graph, node: Any, shape: Shape) -> Converted:
    weight = graph.weights(node, 1)
    require(weight.dim() == 2, f"{described(node)} has a matrix", shape=tuple(weight.shape))
    _fits(node, len(shape) > 1 and math.prod(shape) == shape[-1] == len(weight), shape, weight.T)
    return [_dense(weight.T, None)], (*shape[:-1], weight.shape[1])


def _fits(node: Any, fits: bool, shape: Shape, weight: Tensor) -> None:
    if not fits:
        raise InvalidInput(
            f"{described(node)} must take a flat input with {weight.shape[1]} features, but gets "
            f"{shape}"
        )


def _dense(weight: Tensor, bias: Tensor | None) -> Dense:
    with torch.device("meta"):
        dense = Dense(weight.shape[1], weight.shape[0])
    zeros = weight.new_zeros(len(weight))
    dense.weight = nn.Parameter(weight.contiguous())
    dense.bias = nn.Parameter(zeros if bias is None else bias.expand(len(weight)).clone())
    return dense


def _conv(graph: Graph, node: Any, shape: Shape) -> Converted:
    weight, given = graph.weights(node, 1), attributes(node)
    image = _image(node, shape)
    require(weight.dim() == 4, f"{described(node)} has a two-dimensional kernel")
    groups = given.get("group", 1)
    if weight.shape[1] * groups != image[0]:
        raise InvalidInput(
            f"{described(node)} must take {weight.shape[1] * groups} channels, but gets {image[0]}"
        )
    with torch.device("meta"):
        layer = Convolution(
            image,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=_pair(given, "strides"),
            padding=_padding(node, given),
            dilation=_pair(given, "dilations"),
            groups=groups,
        )
    layer.weight = nn.Parameter(weight)
    bias = graph.weights(node, 2) if _has(node, 2) else weight.new_zeros(len(weight))
    layer.bias = nn.Parameter(bias)
    return [layer], (1, *layer.out_shape)


def _normalization(graph: Graph, node: Any, shape: Shape) -> Converted:
    expect(node, training_mode=0)
    weight, bias, mean, variance = (graph.weights(node, i) for i in range(1, 5))
    require(
        len(shape) >= 2 and shape[0] == 1 and shape[1] == len(weight),
        f"{described(node)} gets its channels",
        channels=len(weight),
        input=shape,
    )
    epsilon = attributes(node).get("epsilon", 1e-5)
    layer = Normalization(len(weight), math.prod(shape[2:]), epsilon)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    layer.mean, layer.variance = mean, variance
    return [layer], shape


def _average_pool(graph: Graph, node: Any, shape: Shape) -> Converted:
    expect(node, ceil_mode=0, dilations=[1, 1])
    given = attributes(node)
    padding = _padding(node, given)
    if padding != (0, 0) and not given.get("count_include_pad", 0):
        raise InvalidInput(f"{described(node)}: padding must be counted, or absent")
    window = tuple(given["kernel_shape"])
    pool = AveragePool(_image(node, shape), window, stride=_pair(given, "strides"), padding=padding)
    return [pool], (1, *pool.out_shape)


def _global_pool(graph: Graph, node: Any, shape: Shape) -> Converted:
    channels, *size = _image(node, shape)
    pool = AveragePool((channels, size[0], size[1]), (size[0], size[1]), stride=(1, 1))
    return [pool], (1, *pool.out_shape)


def _mean(graph: Graph, node: Any, shape: Shape) -> Converted:
    """The mean over some axes: they are put last and pooled."""
    given = attributes(node)
    axes = graph.integers(node, 1) if _has(node, 1) else given.get("axes", [])
    axes = sorted(axis % len(shape) for axis in axes)
    if not axes and given.get("noop_with_empty_axes", 0):
        return [], shape
    require(len(axes) > 0 and 0 not in axes, f"{described(node)} keeps the batch", axes=axes)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    many = math.prod(shape[axis] for axis in axes)
    rows = math.prod(shape) // many
    pool = AveragePool((rows, many, 1), (many, 1), stride=(1, 1))
    if given.get("keepdims", 1):
        result = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    else:
        result = tuple(shape[axis] for axis in kept)
    return [*_reordered(shape, [*kept, *axes]), pool], result


def _flatten(graph: Graph, node: Any, shape: Shape) -> Converted:
    axis = attributes(node).get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [], (math.prod(shape[:axis]), math.prod(shape[axis:]))


def _reshape(graph: Graph, node: Any, shape: Shape) -> Converted:
    sizes = graph.integers(node, 1)
    if not attributes(node).get("allowzero", 0):
        sizes = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(sizes)]
    known = math.prod(size for size in sizes if size != -1)
    features = math.prod(shape)
    if sizes.count(-1) == 1 and known > 0:
        sizes = [features // known if size == -1 else size for size in sizes]
    if min(sizes, default=1) < 1 or math.prod(sizes) != features:
        raise InvalidInput(f"{described(node)} must keep one input {shape}, but makes it {sizes}")
    return [], tuple(sizes)


def _squeeze(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = graph.integers(node, 1) if _has(node, 1) else attributes(node).get("axes")
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    gone = ones if axes is None else [axis % len(shape) for axis in axes]
    require(set(gone) <= set(ones), f"{described(node)} takes sizes of 1 away", shape=shape)
    return [], tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _unsqueeze(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = graph.integers(node, 1) if _has(node, 1) else attributes(node)["axes"]
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes}
    sizes = iter(shape)
    return [], tuple(1 if axis in new else next(sizes) for axis in range(rank))


def _transpose(graph: Graph, node: Any, shape: Shape) -> Converted:
    axes = attributes(node).get("perm", list(range(len(shape)))[::-1])
    return _reordered(shape, axes), tuple(shape[axis] for axis in axes)


def _reordered(shape: Shape, axes: list[int]) -> list[AffineMap]:
    """The map that puts axes into another order; none if the features stay where they are."""
    places = torch.arange(math.prod(shape))
    order = places.view(shape).permute(axes).flatten()
    return [] if torch.equal(order, places) else [Permutation(order)]


def _cast(graph: Graph, node: Any, shape: Shape) -> Converted:
    """Exact, or of the rounding of float32: a coarser one would be a step of the model."""
    to = attributes(node)["to"]
    if TYPES.get(to) not in (TYPES[graph.type], torch.float32, torch.float64):
        raise InvalidInput(f"{described(node)} must not round its input: it casts to type {to}")
    return [], shape


def _dropout(graph: Graph, node: Any, shape: Shape) -> Converted:
    if _has(node, 2) and bool(graph.constant(node, 2).any()):
        raise InvalidInput(f"{described(node)} must not be in training mode")
    return [], shape


def _nothing(graph: Graph, node: Any, shape: Shape) -> Converted:
    return [], shape


_ELEMENTWISE = ("Add", "Div", "Mul", "Neg", "Sub")
_LAYERS: dict[str, Callable[[Graph, Any, Shape], Converted]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _normalization,
    "Cast": _cast,
    "Conv": _conv,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "Identity": _nothing,
    "MatMul": _matmul,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _has(node: Any, index: int) -> bool:
    """Whether an optional input is given."""
    return len(node.input) > index and node.input[index] != ""


def _image(node: Any, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 4 or shape[0] != 1:
        raise InvalidInput(
            f"{described(node)} must take images (1, channels, height, width), but gets {shape}"
        )
    return shape[1], shape[2], shape[3]


def _pair(given: dict[str, Any], name: str) -> tuple[int, int]:
    first, second = given.get(name, (1, 1))
    return first, second


def _padding(node: Any, given: dict[str, Any]) -> tuple[int, int]:
    expect(node, auto_pad=b"NOTSET")
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise InvalidInput(f"{described(node)}: padding must be the same on opposite sides")
    return top, left
