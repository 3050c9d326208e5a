"""Nodes as affine maps of flat inputs, with their output shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raycrt.activations import KINK
from raycrt.errors import InvalidInput, require
from raycrt.foreign.onnx_graph import shapes
from raycrt.foreign.onnx_graph.graph import Graph
from raycrt.foreign.onnx_graph.nodes import SUPPORTED, attributes, described, expect, given
from raycrt.foreign.onnx_graph.shapes import Converted, Shape
from raycrt.networks.layers.affine import Dense
from raycrt.networks.layers.convolution import AveragePool, Convolution
from raycrt.networks.layers.diagonal import Normalization, Scaling


def convert(graph: Graph, node: Any, tensor: str, shape: Shape) -> Converted:
    """The affine maps of `node` applied to `tensor`, which has `shape`, and the new shape."""
    try:
        return _converted(graph, node, tensor, shape)
    except InvalidInput as error:
        raise InvalidInput(f"{described(node)}: {error}") from None


def _converted(graph: Graph, node: Any, tensor: str, shape: Shape) -> Converted:
    if node.op_type == "Gelu":
        expect(node, approximate=b"none")
    if node.op_type in _ELEMENTWISE and node.input[0] != node.input[-1]:
        return _elementwise(graph, node, tensor, shape)
    make = _LAYERS.get(node.op_type)
    if make is None:
        kink = f" ({KINK})" if "Relu" in node.op_type else ""
        raise InvalidInput(f"not supported{kink}; supported are {SUPPORTED}")
    if node.input[0] != tensor or tensor in node.input[1:]:
        raise InvalidInput("the result computed so far must be input 0, and no other input")
    return make(graph, node, shape)


def _elementwise(graph: Graph, node: Any, tensor: str, shape: Shape) -> Converted:
    """`Add`, `Sub`, `Mul` or `Div` with a constant for every feature."""
    features, kind = math.prod(shape), node.op_type
    front = node.input[0] == tensor
    value = graph.weights(node, 1 if front else 0)
    try:
        result = np.broadcast_shapes(tuple(value.shape), shape)
    except ValueError:
        result = ()
    require(
        math.prod(result) == features,
        "a constant that fits the input without repeating it",
        input=shape,
        constant=tuple(value.shape),
    )
    require(bool(value.isfinite().all()), "a finite constant")
    numbers = value.expand(result).reshape(-1)
    if kind == "Mul":
        scaling = _scaling(features, value.dtype, weight=numbers)
    elif kind == "Add":
        scaling = _scaling(features, value.dtype, bias=numbers)
    elif kind == "Sub":
        sign = 1.0 if front else -1.0
        scaling = _scaling(features, value.dtype, weight=sign, bias=-sign * numbers)
    else:
        require(front, "division by a constant, not of one")
        scaling = _scaling(features, value.dtype, divisor=numbers)
    return [scaling], result


def _negative(graph: Graph, node: Any, shape: Shape) -> Converted:
    return [_scaling(math.prod(shape), torch.float32, weight=-1.0)], shape


def _scaling(
    features: int,
    dtype: torch.dtype,
    weight: Tensor | float = 1.0,
    divisor: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
) -> Scaling:
    parts = [torch.as_tensor(part, dtype=dtype) for part in (weight, divisor, bias)]
    return Scaling(*(part.expand(features).clone() for part in parts))


def with_bias(layer: nn.Module, added: nn.Module) -> bool:
    """Make the offset of `added` the bias of `layer`; whether this was possible, without scaling.

    The bias of `layer` must be zero, so that nothing is rounded.
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
    require(weight.dim() == 2, "weight is a matrix", shape=tuple(weight.shape))
    weight = weight if attributes(node).get("transB", 0) else weight.T
    _fits(shape == (1, weight.shape[1]), shape, weight)
    bias = graph.weights(node, 2).flatten() if given(node, 2) else None
    if bias is not None:
        require(len(bias) in (1, len(weight)), "a bias for each output", biases=len(bias))
    return [_dense(weight, bias)], (1, len(weight))


def _matmul(graph: Graph, node: Any, shape: Shape) -> Converted:
    weight = graph.weights(node, 1)
    require(weight.dim() == 2, "weight is a matrix", shape=tuple(weight.shape))
    _fits(len(shape) > 1 and math.prod(shape) == shape[-1] == len(weight), shape, weight.T)
    return [_dense(weight.T, None)], (*shape[:-1], weight.shape[1])


def _fits(fits: bool, shape: Shape, weight: Tensor) -> None:
    require(fits, "input is flat with the weight's features", input=shape, features=weight.shape[1])


def _dense(weight: Tensor, bias: Tensor | None) -> Dense:
    with torch.device("meta"):
        dense = Dense(weight.shape[1], weight.shape[0])
    zeros = weight.new_zeros(len(weight))
    dense.weight = nn.Parameter(weight.contiguous())
    dense.bias = nn.Parameter(zeros if bias is None else bias.expand(len(weight)).clone())
    return dense


def _conv(graph: Graph, node: Any, shape: Shape) -> Converted:
    weight, stated = graph.weights(node, 1), attributes(node)
    image = _image(shape)
    require(weight.dim() == 4, "kernel is two-dimensional", weight=tuple(weight.shape))
    groups = stated.get("group", 1)
    require(
        weight.shape[1] * groups == image[0],
        "a convolution is given as many channels as its kernel takes",
        channels=image[0],
        kernel=weight.shape[1] * groups,
    )
    with torch.device("meta"):
        layer = Convolution(
            image,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=_pair(stated, "strides"),
            padding=_padding(node, stated),
            dilation=_pair(stated, "dilations"),
            groups=groups,
        )
    layer.weight = nn.Parameter(weight)
    bias = graph.weights(node, 2) if given(node, 2) else weight.new_zeros(len(weight))
    layer.bias = nn.Parameter(bias)
    return [layer], (1, *layer.out_shape)


def _normalization(graph: Graph, node: Any, shape: Shape) -> Converted:
    expect(node, training_mode=0, spatial=1)
    # Before opset 14, further outputs mean training mode.
    require(len(node.output) == 1, "one output: fixed statistics", outputs=list(node.output))
    weight, bias, mean, variance = (graph.weights(node, i) for i in range(1, 5))
    require(
        len(shape) >= 2 and shape[0] == 1 and shape[1] == len(weight),
        "one number of each parameter per channel",
        channels=len(weight),
        input=shape,
    )
    # Attributes are float32, and so is their default.
    epsilon = attributes(node).get("epsilon", float(np.float32(1e-5)))
    layer = Normalization(len(weight), math.prod(shape[2:]), epsilon)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    layer.mean, layer.variance = mean, variance
    return [layer], shape


def _average_pool(graph: Graph, node: Any, shape: Shape) -> Converted:
    expect(node, ceil_mode=0, dilations=[1, 1])
    stated = attributes(node)
    padding = _padding(node, stated)
    if padding != (0, 0) and not stated.get("count_include_pad", 0):
        raise InvalidInput("padding must be counted, or absent")
    window = _pair(stated, "kernel_shape")
    pool = AveragePool(_image(shape), window, stride=_pair(stated, "strides"), padding=padding)
    return [pool], (1, *pool.out_shape)


def _global_pool(graph: Graph, node: Any, shape: Shape) -> Converted:
    channels, *size = _image(shape)
    pool = AveragePool((channels, size[0], size[1]), (size[0], size[1]), stride=(1, 1))
    return [pool], (1, *pool.out_shape)


def _mean(graph: Graph, node: Any, shape: Shape) -> Converted:
    """The mean over some axes: they are put last and pooled."""
    stated = attributes(node)
    axes = graph.integers(node, 1) if given(node, 1) else stated.get("axes", [])
    axes = sorted(axis % len(shape) for axis in axes)
    if not axes and stated.get("noop_with_empty_axes", 0):
        return [], shape
    require(len(axes) > 0 and 0 not in axes, "axes without the batch", axes=axes)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    many = math.prod(shape[axis] for axis in axes)
    rows = math.prod(shape) // many
    pool = AveragePool((rows, many, 1), (many, 1), stride=(1, 1))
    if stated.get("keepdims", 1):
        result = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    else:
        result = tuple(shape[axis] for axis in kept)
    return [*shapes.reordered(shape, [*kept, *axes]), pool], result


_ELEMENTWISE = ("Add", "Div", "Mul", "Sub")
_LAYERS: dict[str, Callable[[Graph, Any, Shape], Converted]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _normalization,
    "Cast": shapes.cast,
    "Conv": _conv,
    "Dropout": shapes.dropout,
    "Flatten": shapes.flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "Identity": shapes.nothing,
    "MatMul": _matmul,
    "Neg": _negative,
    "ReduceMean": _mean,
    "Reshape": shapes.reshape,
    "Squeeze": shapes.squeeze,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.unsqueeze,
}


def _image(shape: Shape) -> tuple[int, int, int]:
    require(len(shape) == 4 and shape[0] == 1, "input is images", input=shape)
    return shape[1], shape[2], shape[3]


def _pair(stated: dict[str, Any], name: str) -> tuple[int, int]:
    pair = tuple(stated.get(name, (1, 1)))
    require(len(pair) == 2, f"{name} has two entries", got=pair)
    return pair[0], pair[1]


def _padding(node: Any, stated: dict[str, Any]) -> tuple[int, int]:
    expect(node, auto_pad=b"NOTSET")
    pads = tuple(stated.get("pads", (0, 0, 0, 0)))
    require(
        len(pads) == 4 and pads[:2] == pads[2:], "padding is the same on opposite sides", pads=pads
    )
    return pads[0], pads[1]
