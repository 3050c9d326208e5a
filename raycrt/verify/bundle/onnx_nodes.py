"""The nodes and the constants that an ONNX model of the layers of a spec has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from raycrt.specs import ModelSpec
from raycrt.specs.affine import (
    LINEAR,
    BatchNormalizationLayer,
    PermutationLayer,
    PoolLayer,
    ScalingLayer,
    SelectionLayer,
    UnflattenLayer,
    pair,
)
from raycrt.specs.layers import (
    BlockLayer,
    DirectSumLayer,
    LayerSpec,
    ResidualLayer,
    SideBySide,
    StackLayer,
    SumLayer,
    with_inner,
)

# The node of each kind of layer and activation; those of a silu are Sigmoid and Mul.
_OF_KINDS = {
    "dense": "Gemm",
    "convolution": "Conv",
    "average_pool": "AveragePool",
    "batch_normalization": "BatchNormalization",
}
_FUNCTIONS = {
    "arctan": "Atan",
    "erf": "Erf",
    "gelu": "Gelu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


def _layers(spec: ModelSpec) -> Iterator[LayerSpec]:
    return (each for layer in spec.hidden_layers for each in with_inner(layer))


def sharpnesses(spec: ModelSpec) -> list[float]:
    """Factors beside a softplus or after a pool, and that of the first of two logits."""
    stated = [getattr(layer, "beta", None) or spec.beta for layer in _layers(spec)]
    other = [0.0] * (spec.logits == 1)
    for layer in _layers(spec):
        if isinstance(layer, PoolLayer) and layer.divisor and layer.window != "global":
            other.append(math.prod(pair(layer.window)) / layer.divisor)
    return [*other, *(number for beta in stated if beta != 1 for number in (beta, 1 / beta))]


def numbers(spec: ModelSpec) -> list[list[int]]:
    """Constants of integers: an axis, shapes of images, and sizes of pieces."""
    found = [[1]]
    for layer in _layers(spec):
        if isinstance(layer, UnflattenLayer):
            found.append([0, *layer.shape])
        elif isinstance(layer, SelectionLayer | SumLayer | DirectSumLayer):
            found.append(list(layer.sizes))
    return found


def most_parts(spec: ModelSpec) -> int:
    """The most nodes that use one result: parts of a layer, of which one may begin with a silu."""
    parts = [len(each.parts) for each in _layers(spec) if isinstance(each, SideBySide)]
    return 1 + max(2, *parts) if parts else 3


def operators(spec: ModelSpec, axes: int) -> Counter[str]:
    """How many nodes of each kind the layers of a spec have for inputs of so many `axes`."""
    wanted: Counter[str] = Counter({"Gemm": int(spec.head)})
    if spec.logits == 1:
        wanted += Counter({"Mul": 1, "Concat": 1})
    if spec.normalize:
        wanted += Counter({"Sub": 1, "Div": 1, "Unsqueeze": 2 * (axes - 1)})
    for layer in _layers(spec):
        if isinstance(layer, BlockLayer):
            wanted["Add"] += 1
        elif isinstance(layer, ResidualLayer):
            wanted += Counter({"Gemm" if layer.kernel is None else "Conv": 2, "Add": 1})
            wanted["Reshape"] += layer.kernel is None
        elif isinstance(layer, UnflattenLayer):
            wanted["Reshape"] += 1
        elif isinstance(layer, ScalingLayer):
            wanted += Counter({"Mul": 1, "Div": 1, "Add": 1, "Reshape": 1})
        elif isinstance(layer, PermutationLayer):
            wanted += Counter({"Gather": 1, "Reshape": 1})
        elif isinstance(layer, SumLayer):
            wanted += Counter({"Split": 1, "Add": len(layer.parts) - 1})
        elif isinstance(layer, StackLayer):
            wanted["Concat"] += 1
        elif isinstance(layer, DirectSumLayer | SelectionLayer):
            wanted += Counter({"Split": 1, "Concat": 1})
        elif layer.kind in _OF_KINDS:
            wanted[_OF_KINDS[layer.kind]] += 1
            if isinstance(layer, BatchNormalizationLayer):
                wanted["Reshape"] += layer.per == "feature"
            elif isinstance(layer, PoolLayer):
                wanted["Mul"] += layer.divisor is not None
        name = getattr(layer, "activation", LINEAR)
        name = spec.activation if name is None else name
        if name == "silu":
            wanted += Counter({"Sigmoid": 1, "Mul": 1})
        elif name in _FUNCTIONS:
            wanted[_FUNCTIONS[name]] += 1
            sharp = name == "softplus" and (getattr(layer, "beta", None) or spec.beta) != 1
            wanted["Mul"] += 2 * sharp
    return wanted
