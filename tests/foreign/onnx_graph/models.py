"""ONNX files written node by node, for the tests of their reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn


class Graph:
    """A graph whose nodes each take the last one's output, unless `on` says what they take.

    `shape` is that of one input; `batch` is its first size, a name where it is open.
    """

    def __init__(self, *shape: int, batch: int | str = "batch", opset: int = 20) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shape, self.batch, self.opset = shape, batch, opset
        self.last = "x"

    def constant(self, value: Any) -> str:
        """A stored tensor, a numpy array or a tensor of torch as it is."""
        from onnx import TensorProto, numpy_helper

        name = f"c{len(self.constants)}"
        if isinstance(value, TensorProto):
            value.name = name
            self.constants.append(value)
        else:
            array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def __call__(
        self, kind: str, *constants: Any, on: tuple[str, ...] | None = None, **attributes: Any
    ) -> str:
        from onnx import helper

        names = [self.constant(value) for value in constants]
        output = f"t{len(self.nodes)}"
        inputs = [*((self.last,) if on is None else on), *names]
        node = helper.make_node(kind, inputs, [output], name=f"/n{output}", **attributes)
        self.nodes.append(node)
        self.last = output
        return output

    def folded(
        self, kind: str, *constants: Any, on: tuple[str, ...] | None = None, **attributes: Any
    ) -> str:
        """A node of constants alone, that the chain does not run through."""
        last = self.last
        names = tuple(self.constant(value) for value in constants)
        made = self(kind, on=(*(on or ()), *names), **attributes)
        self.last = last
        return made

    def model(self, kind: int | None = None) -> Any:
        """The model, of inputs and outputs of type `kind`, by default float64."""
        from onnx import TensorProto, helper

        kind = TensorProto.DOUBLE if kind is None else kind
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "model",
            [value("x", kind, [self.batch, *self.shape])],
            [value(self.last, kind, ["batch", "classes"])],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )

    def save(self, directory: Path, kind: int | None = None) -> Path:
        import onnx

        file = directory / "model.onnx"
        onnx.save(self.model(kind), file)
        return file


def gemm_chain(model: nn.Sequential, activate: Any, graph: Graph | None = None) -> Graph:
    """Linear layers of `model` as Gemm, `activate(graph)` for each activation."""
    graph = graph or Graph(model[0].in_features)
    for layer in model:
        if isinstance(layer, nn.Linear):
            graph("Gemm", layer.weight, layer.bias, transB=1)
        else:
            activate(graph)
    return graph


def sharp(graph: Graph) -> None:
    graph("Mul", np.array(4.0))
    graph("Softplus")
    graph("Div", np.array(4.0))


def softplus_below(threshold: float, beta: float = 1.0):
    """What torch's exporter makes of softplus: linear above the threshold."""

    def activate(graph: Graph) -> None:
        x = graph.last
        scaled = graph("Mul", np.array(float(beta)), on=(x,))
        graph("Softplus")
        soft = graph("Div", np.array(float(beta)))
        above = graph("Greater", np.array(float(threshold)), on=(scaled,))
        graph("Where", on=(above, x, soft))

    return activate


def silu(graph: Graph) -> None:
    x = graph.last
    graph("Mul", on=(x, graph("Sigmoid")))


def gelu_half_last(graph: Graph) -> None:
    x = graph.last
    graph("Div", np.array(math.sqrt(2)))
    graph("Erf")
    graph("Mul", on=(x, graph("Add", np.array(1.0))))
    graph("Mul", np.array(0.5))


def gelu_two_branches(graph: Graph) -> None:
    x = graph.last
    graph("Mul", np.array(math.sqrt(0.5)))
    graph("Erf")
    one_plus = graph("Add", np.array(1.0))
    graph("Mul", on=(graph("Mul", np.array(0.5), on=(x,)), one_plus))


def gelu_half_first(graph: Graph) -> None:
    x = graph.last
    graph("Mul", np.array(math.sqrt(0.5)))
    graph("Erf")
    graph("Add", np.array(1.0))
    graph("Mul", on=(x, graph("Mul", np.array(0.5))))


def flat(*before: nn.Module, features: int = 16, classes: int = 3) -> nn.Sequential:
    layers = [nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, classes)]
    return nn.Sequential(*before, nn.Flatten(), *layers).double()


def head(graph: Graph, model: nn.Sequential) -> Graph:
    """The last three layers of `flat`."""
    return gemm_chain(model[-3:], lambda g: g("Tanh"), graph)


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
