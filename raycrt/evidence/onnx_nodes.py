"""The nodes of an ONNX model so far, and those of an activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from raycrt.specs import ModelSpec
from raycrt.specs.affine import LINEAR

_FUNCTIONS = {
    "arctan": "Atan",
    "erf": "Erf",
    "gelu": "Gelu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


class Nodes:
    """The nodes so far; `last` is their result, of `shape` without the batch. `maps` counts the
    affine maps of the network, by which tensors are named."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], spec: ModelSpec, shape: tuple[int, ...]
    ) -> None:
        self.tensors, self.spec, self.shape, self.inputs = tensors, spec, shape, shape
        self.type = next(each.dtype for each in tensors.values() if each.dtype.kind == "f")
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last, self.maps = "input", 0

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
