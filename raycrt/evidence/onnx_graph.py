"""The nodes of an ONNX model, appended layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, repeat
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from raycrt.specs import ModelSpec
from raycrt.specs.affine import (
    LINEAR,
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    IdentityLayer,
    PoolLayer,
    Reshaping,
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
)

# The opset has Gelu; models of it have this version of the format.
_OPSET, _FORMAT = 20, 9
_FUNCTIONS = {
    "arctan": "Atan",
    "erf": "Erf",
    "gelu": "Gelu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


class Graph:
    """The nodes so far; `last` is their result, of `shape` without the batch. `maps` counts the
    affine maps of the network, by which tensors are named."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], spec: ModelSpec, shape: tuple[int, ...]
    ) -> None:
        self.tensors, self.spec, self.shape, self.inputs = tensors, spec, shape, shape
        self.type = next(iter(tensors.values())).dtype
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last, self.maps = "input", 0

    def normalize(self) -> None:
        """Append `(x - mean) / std`, of each channel or feature."""
        name, before = self._name(), self.last
        for kind, part in (("Sub", "mean"), ("Div", "std")):
            number = f"{name}.{part}"
            for _ in self.shape[1:]:
                self.constants["axis"] = np.array([1], np.int64)
                self.last = number
                self._node("Unsqueeze", "axis")
                number = self.last
            self.last = before
            self._node(kind, number)
            before = self.last

    def add(self, layer: LayerSpec, name: str | None = None) -> bool:
        """Append a layer, whose tensors are under `name` or are those of the next map; false if it
        cannot be written."""
        images = isinstance(layer, ConvolutionLayer | PoolLayer)
        flat = isinstance(layer, BatchNormalizationLayer) and layer.per == "feature"
        if flat and len(self.shape) != 1:
            return False
        if len(self.shape) != 3 and (images or getattr(layer, "kernel", None) is not None):
            # A dense residual layer came before, which leaves its images flat here.
            return False
        match layer:
            case DenseLayer():
                self._dense(name or self._name())
                self.shape = (layer.width,)
                return self._act(layer.activation, layer.beta)
            case ConvolutionLayer():
                sides, steps, pads, apart = (
                    pair(n) for n in (layer.kernel, layer.stride, layer.padding, layer.dilation)
                )
                self._convolve(
                    name or self._name(),
                    [*pads, *pads],
                    strides=steps,
                    dilations=apart,
                    group=layer.groups,
                )
                rows, columns = (
                    (n + 2 * pad - gap * (side - 1) - 1) // step + 1
                    for n, side, step, pad, gap in zip(
                        self.shape[1:], sides, steps, pads, apart, strict=True
                    )
                )
                self.shape = (layer.channels, rows, columns)
                return self._act(layer.activation, layer.beta)
            case PoolLayer():
                channels, *image = self.shape
                window = layer.of((channels, image[0], image[1]))
                if (layer.stride, layer.divisor, pair(layer.padding)) != (None, None, (0, 0)):
                    return False
                self._node("AveragePool", kernel_shape=window, strides=window)
                self.maps += name is None
                rows, columns = (n // side for n, side in zip(image, window, strict=True))
                self.shape = (channels, rows, columns)
                return self._act(layer.activation, layer.beta)
            case BatchNormalizationLayer():
                own = name or self._name()
                parts = [f"{own}.{part}" for part in ("weight", "bias", "mean", "variance")]
                self._node("BatchNormalization", *parts, epsilon=layer.eps)
                return self._act(layer.activation, layer.beta)
            case FlattenLayer():
                self._flatten()
            case UnflattenLayer():
                self._node("Reshape", self._numbers("shape", (0, *layer.shape)))
                self.shape = layer.shape
            case IdentityLayer():
                self.maps += name is None
                return self._act(layer.activation, layer.beta)
            case SelectionLayer():
                self.maps += name is None
                pieces = self._split(layer.sizes)
                self._concatenate([pieces[k] for k in layer.kept])
                self.shape = (sum(layer.sizes[k] for k in layer.kept),)
                return self._act(layer.activation, layer.beta)
            case StackLayer() | SumLayer() | DirectSumLayer():
                return self._side_by_side(layer, name or self._name())
            case ResidualLayer():
                return self._residual(layer)
            case BlockLayer():
                return self._block(layer)
            case _:
                return False
        return True

    def model(self) -> ModelProto:
        """The whole model, with the layer that makes the logits."""
        if self.spec.head:
            name = self._name()
            self._dense(name)
            self.shape = (len(self.tensors[f"{name}.bias"]),)
        self._flatten()
        self.nodes[-1].output[0] = "logits"
        kind = helper.np_dtype_to_tensor_dtype(self.type)
        weights = {**self.tensors, **self.constants}
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", kind, ["n", *self.inputs])],
            [helper.make_tensor_value_info("logits", kind, ["n", *self.shape])],
            [numpy_helper.from_array(weights[name], name) for name in sorted(weights)],
        )
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(
            graph, opset_imports=opset, ir_version=_FORMAT, producer_name="raycrt"
        )

    def _residual(self, layer: ResidualLayer) -> bool:
        """`x + V s(W x + b) + c`."""
        inner, outer = self._name(".parts.0"), self._name(".parts.0")
        if layer.kernel is None:
            self._flatten()
        before, pads = self.last, [(layer.kernel or 1) // 2] * 4
        parts = []
        for name in (inner, outer):
            if layer.kernel is None:
                self._gemm(name)
            else:
                self._convolve(name, pads)
            parts.append(name == outer or self._act(layer.activation, layer.beta))
        self._node("Add", before)
        return all(parts)

    def _block(self, layer: BlockLayer) -> bool:
        """`s(S(x) + f(x))`."""
        before, shape = self.last, self.shape
        *inner, outer = layer.stages
        known = [self._chain(stage, self._name(".parts.0")) for stage in inner]
        whole = self._name()
        known.append(self._chain(outer, f"{whole}.parts.0"))
        made, kind = self.last, self.shape
        self.last, self.shape = before, shape
        known.append(self._chain(layer.shortcut, f"{whole}.parts.1"))
        if len(kind) == 1:
            self._flatten()
        self._node("Add", made)
        return all(known) and self._act(layer.activation, layer.beta)

    def _side_by_side(self, layer: SideBySide, name: str) -> bool:
        """Maps of one input, or of its consecutive pieces."""
        given, shapes = [self.last] * len(layer.parts), [self.shape] * len(layer.parts)
        if not isinstance(layer, StackLayer):
            given, shapes = self._split(layer.sizes), [(size,) for size in layer.sizes]
        made, known = [], []
        for k, part in enumerate(layer.parts):
            self.last, self.shape = given[k], shapes[k]
            known.append(self._chain(part, f"{name}.parts.{k}"))
            self._flatten()
            if k == 0 and not isinstance(layer, SumLayer):
                known.append(self._act(layer.activation, layer.beta))
            made.append((self.last, self.shape[0]))
        if not isinstance(layer, SumLayer):
            self._concatenate([part for part, _ in made])
            self.shape = (sum(size for _, size in made),)
            return all(known)
        self.last = made[0][0]
        for other, _ in made[1:]:
            self._node("Add", other)
        return all(known) and self._act(layer.activation, layer.beta)

    def _split(self, sizes: Sequence[int]) -> list[str]:
        """Consecutive pieces of the features."""
        self._flatten()
        made = [f"z{len(self.nodes)}.{k}" for k in range(len(sizes))]
        given = [self.last, self._numbers("sizes", sizes)]
        self.nodes.append(helper.make_node("Split", given, made, axis=1))
        return made

    def _concatenate(self, parts: Sequence[str]) -> None:
        self.last = parts[0]
        self._node("Concat", *parts[1:], axis=1)

    def _numbers(self, kind: str, numbers: Sequence[int]) -> str:
        """The name of a constant of integers."""
        name = " ".join(map(str, (kind, *numbers)))
        self.constants[name] = np.array(numbers, np.int64)
        return name

    def _chain(self, layers: Sequence[LayerSpec], name: str) -> bool:
        """Append the layers of one part of a block, whose tensors are under `name`."""
        several = sum(not isinstance(each, Reshaping) for each in layers) > 1
        names = (f"{name}.maps.{k}" for k in count()) if several else repeat(name)
        return all(
            self.add(each) if isinstance(each, Reshaping) else self.add(each, next(names))
            for each in layers
        )

    def _dense(self, name: str) -> None:
        self._flatten()
        self._gemm(name)

    def _gemm(self, name: str) -> None:
        self._node("Gemm", f"{name}.weight", f"{name}.bias", transB=1)

    def _convolve(self, name: str, pads: list[int], **options: Any) -> None:
        sides = list(self.tensors[f"{name}.weight"].shape[2:])
        self._node(
            "Conv", f"{name}.weight", f"{name}.bias", kernel_shape=sides, pads=pads, **options
        )

    def _flatten(self) -> None:
        if len(self.shape) > 1:
            self._node("Flatten", axis=1)
            self.shape = (math.prod(self.shape),)

    def _act(self, name: str | None, beta: float | None) -> bool:
        """Append an activation, by default that of the model; false if none has its name."""
        name = name or self.spec.activation
        if name == LINEAR:
            return True
        if name == "silu":
            before = self.last
            self._node("Sigmoid")
            self._node("Mul", before)
            return True
        if name not in _FUNCTIONS:
            return False
        sharpness = beta or self.spec.beta
        scaled = name == "softplus" and sharpness != 1
        if scaled:
            self.constants[f"beta {sharpness}"] = np.array(sharpness, self.type)
            self.constants[f"1 / beta {sharpness}"] = np.array(1 / sharpness, self.type)
            self._node("Mul", f"beta {sharpness}")
        self._node(_FUNCTIONS[name])
        if scaled:
            self._node("Mul", f"1 / beta {sharpness}")
        return True

    def _node(self, kind: str, *others: str, **options: Any) -> None:
        made = f"z{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *others], [made], **options))
        self.last = made

    def _name(self, part: str = "") -> str:
        self.maps += 1
        return f"maps.{self.maps - 1}{part}"
