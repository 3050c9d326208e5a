"""A network of a spec as an ONNX model, written from its stored weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, checker, helper, numpy_helper

from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.onnx_graph.reference import Reference
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec
from raycrt.specs.layers import (
    LINEAR,
    ConvolutionLayer,
    DenseLayer,
    FlattenLayer,
    LayerSpec,
    PoolLayer,
    ResidualLayer,
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


def written(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, shape: Sequence[int]
) -> ModelProto | None:
    """The model from `input` (n, *shape) to `logits` (n, classes), with the `tensors` of a
    `model.safetensors` under their names; None if a layer or an activation has no operator."""
    graph = _Graph(tensors, spec, tuple(shape))
    if not all(graph.add(layer) for layer in spec.hidden_layers):
        return None
    return graph.model()


def check(model: ModelProto, network: Network, shape: Sequence[int], images: torch.Tensor) -> None:
    """Raise `InvalidInput` unless the reference evaluator computes the logits of `network` at
    `images` and at random inputs."""
    checker.check_model(model, full_check=True)
    reference = Reference(model, "logits", predicts=False)
    require_same_function(reference, network, shape, given=images)


class _Graph:
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

    def add(self, layer: LayerSpec) -> bool:
        """Append a layer; false if it cannot be written."""
        images = isinstance(layer, ConvolutionLayer | PoolLayer)
        if len(self.shape) != 3 and (images or getattr(layer, "kernel", None) is not None):
            # A dense residual layer came before, which leaves its images flat here.
            return False
        match layer:
            case DenseLayer():
                self._dense()
                self.shape = (layer.width,)
                return self._act(layer.activation)
            case ConvolutionLayer():
                pads = [layer.padding] * 4
                self._convolve(self._name(), pads, strides=[layer.stride] * 2, group=layer.groups)
                rows, columns = (
                    (n + 2 * layer.padding - layer.kernel) // layer.stride + 1
                    for n in self.shape[1:]
                )
                self.shape = (layer.channels, rows, columns)
                return self._act(layer.activation)
            case PoolLayer():
                sides = [layer.window] * 2
                self._node("AveragePool", kernel_shape=sides, strides=sides)
                self.maps += 1
                channels, *size = self.shape
                self.shape = (channels, *(n // layer.window for n in size))
            case FlattenLayer():
                self._flatten()
            case ResidualLayer():
                return self._residual(layer)
            case _:
                return False
        return True

    def model(self) -> ModelProto:
        """The whole model, with the layer that makes the logits."""
        self._dense()
        self.nodes[-1].output[0] = "logits"
        classes = len(self.tensors[f"maps.{self.maps - 1}.bias"])
        kind = helper.np_dtype_to_tensor_dtype(self.type)
        weights = {**self.tensors, **self.constants}
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", kind, ["n", *self.inputs])],
            [helper.make_tensor_value_info("logits", kind, ["n", classes])],
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
            parts.append(name == outer or self._act(layer.activation))
        self._node("Add", before)
        return all(parts)

    def _dense(self) -> None:
        self._flatten()
        self._gemm(self._name())

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

    def _act(self, name: str | None) -> bool:
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
        scaled = name == "softplus" and self.spec.beta != 1
        if scaled:
            self.constants["beta"] = np.array(self.spec.beta, self.type)
            self.constants["1 / beta"] = np.array(1 / self.spec.beta, self.type)
            self._node("Mul", "beta")
        self._node(_FUNCTIONS[name])
        if scaled:
            self._node("Mul", "1 / beta")
        return True

    def _node(self, kind: str, *others: str, **options: Any) -> None:
        made = f"z{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *others], [made], **options))
        self.last = made

    def _name(self, part: str = "") -> str:
        self.maps += 1
        return f"maps.{self.maps - 1}{part}"
