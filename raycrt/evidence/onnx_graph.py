"""The nodes of an ONNX model, appended layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count, repeat
from typing import Any

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from raycrt.evidence.onnx_nodes import Nodes
from raycrt.specs.affine import (
    BatchNormalizationLayer,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    IdentityLayer,
    PermutationLayer,
    PoolLayer,
    Reshaping,
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
)

# The opset has Gelu; models of it have this version of the format.
_OPSET, _FORMAT = 20, 9


class Graph(Nodes):
    """Appends the layers of a spec."""

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
                return self._pool(layer, name) and self._act(layer.activation, layer.beta)
            case BatchNormalizationLayer():
                own, image = name or self._name(), self.shape
                parts = [f"{own}.{part}" for part in ("weight", "bias", "mean", "variance")]
                if layer.per == "feature":
                    self._flatten()
                self._node("BatchNormalization", *parts, epsilon=layer.eps)
                if layer.per == "feature":
                    self._restore(image)
                return self._act(layer.activation, layer.beta)
            case FlattenLayer():
                self._flatten()
            case UnflattenLayer():
                self._node("Reshape", self._numbers("shape", (0, *layer.shape)))
                self.shape = layer.shape
            case IdentityLayer():
                self.maps += name is None
                return self._act(layer.activation, layer.beta)
            case ScalingLayer():
                own, image = name or self._name(), self.shape
                self._flatten()
                for kind, part in (("Mul", "weight"), ("Div", "divisor"), ("Add", "bias")):
                    self._node(kind, f"{own}.{part}")
                self._restore(image)
                return self._act(layer.activation, layer.beta)
            case PermutationLayer():
                own, image = name or self._name(), self.shape
                self._flatten()
                self._node("Gather", f"{own}.order", axis=1)
                self._restore(image)
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
        if self.spec.logits == 1:
            one = self.last
            self.constants["zero"] = np.array(0, self.type)
            self._node("Mul", "zero")
            self._concatenate([self.last, one])
            self.shape = (2,)
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
        image = self.shape
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
        if layer.kernel is None:
            self._restore(image)
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

    def _pool(self, layer: PoolLayer, name: str | None) -> bool:
        """Means over windows; false where the divisor of a sum over a whole image is stated."""
        if layer.divisor is not None and layer.window == "global":
            return False
        channels, height, width = self.shape
        window, pads = layer.of((channels, height, width)), pair(layer.padding)
        steps = window if layer.stride is None else pair(layer.stride)
        sizes = {"kernel_shape": window, "strides": steps, "pads": [*pads, *pads]}
        self._node("AveragePool", count_include_pad=1, **sizes)
        if layer.divisor is not None:
            factor = math.prod(window) / layer.divisor
            self.constants[f"factor {factor}"] = np.array(factor, self.type)
            self._node("Mul", f"factor {factor}")
        self.maps += name is None
        rows, columns = (
            (n + 2 * pad - side) // step + 1
            for n, side, step, pad in zip((height, width), window, steps, pads, strict=True)
        )
        self.shape = (channels, rows, columns)
        return True

    def _restore(self, shape: tuple[int, ...]) -> None:
        """Give a vector the `shape` that it had."""
        self._node("Reshape", self._numbers("shape", (0, *shape)))
        self.shape = shape

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
