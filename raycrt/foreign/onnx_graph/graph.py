"""An ONNX graph with known constants and, in order, the nodes that its output needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycrt.errors import InvalidInput, require
from raycrt.foreign.onnx_graph.file import inputs, opsets
from raycrt.foreign.onnx_graph.nodes import described

# Types of floating point by their numbers in `onnx.TensorProto`.
TYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
# Operations whose results differ from one evaluation to the next.
_RANDOM = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
)


class Graph:
    """`nodes` compute `output` from `input`; what depends on constants alone is in `constants`."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.opsets = opsets(model)
        self.input, self.output = inputs(graph)[0].name, graph.output[0].name
        self.type: int = inputs(graph)[0].type.tensor_type.elem_type
        self.constants: dict[str, np.ndarray] = {
            t.name: numpy_helper.to_array(t) for t in graph.initializer
        }
        self.nodes = _needed(list(graph.node), self.output)
        self._fold()

    @property
    def opset(self) -> int:
        return self.opsets[""]

    def end(self, tensor: str) -> None:
        """Forget the nodes that `tensor` does not need."""
        self.nodes = _needed(self.nodes, tensor)

    def consumers(self, tensor: str) -> list[Any]:
        """The nodes that use a tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def reach(self, tensor: str, shape: tuple[int, ...]) -> None:
        """Set the shape of a tensor; everything computed from the shape becomes constant."""
        asking = [n for n in self.consumers(tensor) if n.op_type in ("Shape", "Size")]
        for node in asking:
            self._evaluate(node, {tensor: np.zeros(shape, np.float32)})
        if asking:
            self.nodes = [node for node in self.nodes if node not in asking]
            self._fold()

    def constant(self, node: Any, index: int) -> np.ndarray:
        """An input of a node, which must be constant."""
        name = node.input[index]
        if name not in self.constants:
            raise InvalidInput(
                f"input {index} must be a constant, but is computed; only sums and differences "
                "join what is computed"
            )
        return self.constants[name]

    def integers(self, node: Any, index: int) -> list[int]:
        """A constant input that holds sizes or axes."""
        return [int(i) for i in self.constant(node, index).flatten()]

    def weights(self, node: Any, index: int) -> Tensor:
        """A constant input that holds weights, as stored; half precision is widened to float32."""
        from onnx.helper import np_dtype_to_tensor_dtype as kind

        value = self.constant(node, index)
        where = f"input {index}"
        if value.dtype not in (np.float32, np.float64):
            half = kind(value.dtype) in TYPES
            require(
                half, f"{where} is float16, bfloat16, float32 or float64", type=value.dtype.name
            )
            value = value.astype(np.float32)
        require(value.size > 0, f"{where} is not empty", shape=value.shape)
        require(not np.isnan(value).any(), f"{where} is not NaN", shape=value.shape)
        return torch.from_numpy(np.array(value))

    def _fold(self) -> None:
        """Evaluate the nodes whose inputs are all known."""
        left = []
        for node in self.nodes:
            known = all(name in self.constants for name in node.input if name)
            nested = any(a.HasField("g") or a.graphs for a in node.attribute)
            if known and not nested and node.op_type not in _RANDOM:
                self._evaluate(node, {name: self.constants[name] for name in node.input if name})
            else:
                left.append(node)
        self.nodes = left

    def _evaluate(self, node: Any, feeds: dict[str, np.ndarray]) -> None:
        from onnx import TypeProto, helper
        from onnx.reference import ReferenceEvaluator

        names = [name for name in node.output if name]
        values = [helper.make_value_info(name, TypeProto()) for name in names]
        graph = helper.make_graph([node], "constant", [], values)
        try:
            with np.errstate(all="ignore"):
                found = ReferenceEvaluator(graph, opsets=self.opsets).run(None, feeds)
        except Exception as error:
            first = " ".join(str(error).split())[:200]
            raise InvalidInput(f"{described(node)} cannot be evaluated: {first}") from None
        for name, value in zip(names, found, strict=True):
            require(isinstance(value, np.ndarray | np.generic), f"{described(node)} gives a tensor")
            self.constants[name] = np.asarray(value)


def _needed(nodes: list[Any], output: str) -> list[Any]:
    """The nodes that `output` depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]
