"""ONNX files of sequential networks as `torch.nn.Sequential`. Needs the `onnx` package.

A graph is followed from its input to its output; every node on the way must have one layer as its
meaning. What exporters write for GELU, SiLU and a sharpened softplus is recognised.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raycrt.activations import softplus
from raycrt.elementwise import Elementwise
from raycrt.errors import InvalidInput, require

# A coefficient and factors (function, scale): `_Reader._elementwise`.
_Term = tuple[float, tuple[tuple[str, float], ...]]
_FUNCTIONS = {
    "Atan": "arctan",
    "Erf": "erf",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Tanh": "tanh",
}
_SUPPORTED = sorted(
    [
        *_FUNCTIONS,
        "Add of a bias",
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "Dropout",
        "Flatten",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "MatMul",
        "Reshape",
    ]
)


def read(path: Path) -> tuple[nn.Sequential, tuple[int, ...] | None]:
    """The layers of an ONNX file and the shape of one input, if the file states it.

    Layers carry the names of their nodes. Raises `InvalidInput` for a damaged file, a graph that is
    not one chain, or an unsupported node.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise InvalidInput(
            "the onnx package must be installed to read ONNX files: pip install 'raycrt[onnx]'"
        ) from None
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        first = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{path} must be a valid ONNX file: {first}") from None
    return _Reader(model.graph).layers()


class _Reader:
    """A graph with its constants, and the place reached in it."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.consumers: dict[str, list[Any]] = {}
        self.nodes: list[Any] = []
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = _constant(node)
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]
            else:
                self.nodes.append(node)
                for name in dict.fromkeys(node.input):
                    self.consumers.setdefault(name, []).append(node)
        inputs = [i for i in graph.input if i.name not in self.constants]
        require(len(inputs) == 1, "one input", inputs=[i.name for i in inputs])
        require(len(graph.output) == 1, "one output", outputs=[o.name for o in graph.output])
        self.input, self.output = inputs[0], graph.output[0].name
        self.tensor = self.input.name
        self.found = nn.Sequential()

    def layers(self) -> tuple[nn.Sequential, tuple[int, ...] | None]:
        while self.tensor != self.output:
            nodes = self.consumers.get(self.tensor, [])
            if not nodes or (len(nodes) > 1 and not self._elementwise()):
                raise InvalidInput(
                    f"a graph must be one chain, but {len(nodes)} nodes use {self.tensor!r}"
                )
            if len(nodes) == 1:
                self._node(nodes[0])
        sizes = [d.dim_value for d in self.input.type.tensor_type.shape.dim][1:]
        return self.found, tuple(sizes) if sizes and min(sizes) > 0 else None

    def _node(self, node: Any) -> None:
        if node.op_type == "Add":
            self._bias(node)
        elif self._elementwise():
            return
        else:
            self._append(node, self._layer(node))
        self.tensor = node.output[0]

    def _append(self, node: Any, layer: nn.Module) -> None:
        name = (node.name or f"{node.op_type}_{len(self.found)}").replace(".", "_")
        self.found.add_module(f"{len(self.found)}:{name}", layer)

    def _layer(self, node: Any) -> nn.Module:
        attributes = _attributes(node)
        if node.op_type == "Gelu":
            _expect(node, attributes, approximate=b"none")
            return nn.GELU()
        if node.op_type == "Gemm":
            _expect(node, attributes, alpha=1.0, beta=1.0, transA=0)
            weight = self._weight(node, 1)
            bias = self._weight(node, 2).flatten() if len(node.input) > 2 else None
            return _linear(weight if attributes.get("transB", 0) else weight.T, bias)
        if node.op_type == "MatMul":
            return _linear(self._weight(node, 1).T, None)
        if node.op_type == "Conv":
            return self._conv(node, attributes)
        if node.op_type == "AveragePool":
            return _pool(node, attributes)
        if node.op_type == "GlobalAveragePool":
            return nn.AdaptiveAvgPool2d(1)
        if node.op_type == "BatchNormalization":
            _expect(node, attributes, training_mode=0)
            return self._normalization(node, attributes)
        if node.op_type == "Flatten":
            _expect(node, attributes, axis=1)
            return nn.Flatten()
        if node.op_type == "Reshape":
            return self._reshape(node)
        if node.op_type in ("Identity", "Dropout"):
            return nn.Identity()
        raise _unsupported(node)

    def _weight(self, node: Any, index: int) -> Tensor:
        name = node.input[index]
        if name not in self.constants:
            raise InvalidInput(f"{_name(node)}: input {index} must be a constant, but is computed")
        return torch.from_numpy(np.array(self.constants[name]))

    def _conv(self, node: Any, attributes: dict[str, Any]) -> nn.Module:
        weight = self._weight(node, 1)
        require(weight.dim() == 4, "kernel is two-dimensional", node=_name(node))
        groups = attributes.get("group", 1)
        with torch.device("meta"):
            layer = nn.Conv2d(
                weight.shape[1] * groups,
                weight.shape[0],
                (weight.shape[2], weight.shape[3]),
                stride=tuple(attributes.get("strides", (1, 1))),
                padding=_padding(node, attributes),
                dilation=tuple(attributes.get("dilations", (1, 1))),
                groups=groups,
                bias=False,
            )
        layer.weight = nn.Parameter(weight)
        if len(node.input) > 2:
            layer.bias = nn.Parameter(self._weight(node, 2))
        return layer

    def _normalization(self, node: Any, attributes: dict[str, Any]) -> nn.Module:
        weight, bias, mean, variance = (self._weight(node, i) for i in range(1, 5))
        layer = nn.BatchNorm2d(len(weight), eps=attributes.get("epsilon", 1e-5))
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layer.running_mean, layer.running_var = mean, variance
        return layer

    def _reshape(self, node: Any) -> nn.Module:
        sizes = [int(s) for s in self._weight(node, 1)]
        if len(sizes) == 2:
            return nn.Flatten()
        require(len(sizes) == 4 and min(sizes[1:]) > 0, "a constant image shape", shape=sizes)
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, tuple(sizes[1:])))

    def _bias(self, node: Any) -> None:
        """`Add` of a constant after a layer without bias."""
        last = self.found[-1] if len(self.found) else None
        (other,) = [n for n in node.input if n != self.tensor] or [""]
        if other not in self.constants:
            raise InvalidInput(f"{_name(node)} must add a constant; a graph must be one chain")
        value = torch.from_numpy(np.array(self.constants[other]))
        if not isinstance(last, nn.Linear | nn.Conv2d) or last.bias is not None:
            raise InvalidInput(f"{_name(node)} must follow MatMul or Conv without a bias")
        width = last.out_features if isinstance(last, nn.Linear) else last.out_channels
        trailing = () if isinstance(last, nn.Linear) else (1, 1)
        fits = value.numel() == 1 or tuple(value.squeeze(0).shape) == (width, *trailing)
        if not (fits or tuple(value.shape) == (width, *trailing)):
            raise InvalidInput(
                f"{_name(node)}: a bias must have {width} entries, got {value.shape}"
            )
        last.bias = nn.Parameter(value.flatten().expand(width).clone())

    def _elementwise(self) -> bool:
        """Read the elementwise nodes that follow as one activation; whether there are any.

        Each tensor made of the reached one, x, by them is a coefficient times a product of factors
        `(function, scale)`, standing for x itself or for function(scale x).
        """
        terms: dict[str, _Term] = {self.tensor: (1.0, (("x", 1.0),))}
        last = None
        for node in self.nodes:
            term = self._term(node, terms)
            if term is not None:
                terms[node.output[0]], last = term, node
        if last is None:
            return False
        self._inside(terms, last)
        made = _recognised(terms[last.output[0]])
        if made is None:
            raise _unsupported(last)
        self._append(last, made)
        self.tensor = last.output[0]
        return True

    def _inside(self, terms: dict[str, _Term], last: Any) -> None:
        """Refuse nodes that use what lies between the activation's ends."""
        for tensor in terms:
            for node in self.consumers.get(tensor, []):
                if node.output[0] not in terms and tensor != last.output[0]:
                    raise _unsupported(node)

    def _term(self, node: Any, terms: dict[str, _Term]) -> _Term | None:
        """What `node` makes of x, if it is of this form and depends on x and constants only."""
        inputs = [terms[n] for n in node.input if n in terms]
        constants = [self.constants[n] for n in node.input if n in self.constants]
        if not inputs or len(inputs) + len(constants) != len(node.input):
            return None
        coefficient, factors = inputs[0]
        number = float(constants[0].reshape(())) if constants and constants[0].size == 1 else None
        if node.op_type in _FUNCTIONS and factors == (("x", 1.0),):
            return 1.0, ((node.op_type, coefficient),)
        if node.op_type == "Mul" and len(inputs) == 2:
            return coefficient * inputs[1][0], tuple(sorted(factors + inputs[1][1]))
        if number is None:
            return None
        if node.op_type == "Mul":
            return coefficient * number, factors
        if node.op_type == "Div" and node.input[0] in terms:
            return coefficient / number, factors
        if node.op_type == "Add" and (coefficient, number) == (1.0, 1.0) and len(factors) == 1:
            return 1.0, (("1 + " + factors[0][0], factors[0][1]),)
        return None


def _recognised(term: _Term) -> nn.Module | None:
    """The activation that a term stands for; constants may be rounded to float32."""
    coefficient, factors = term
    names, scales = tuple(name for name, _ in factors), tuple(scale for _, scale in factors)
    if names == ("Softplus",) and scales[0] > 0 and _near(coefficient * scales[0], 1):
        return Elementwise(softplus(scales[0]))
    if coefficient == 1 and len(names) == 1 and names[0] in _FUNCTIONS and scales[0] == 1:
        return Elementwise(_FUNCTIONS[names[0]])
    if names == ("Sigmoid", "x") and coefficient == 1 and scales[0] == 1:
        return nn.SiLU()
    if names == ("1 + Erf", "x") and coefficient == 0.5 and _near(scales[0], math.sqrt(0.5)):
        return nn.GELU()
    return None


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=2.0**-22)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    require(weight.dim() == 2, "weight is a matrix", shape=tuple(weight.shape))
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.expand(weight.shape[0]).clone())
    return layer


def _pool(node: Any, attributes: dict[str, Any]) -> nn.Module:
    _expect(node, attributes, ceil_mode=0, dilations=[1, 1])
    window = tuple(attributes["kernel_shape"])
    return nn.AvgPool2d(
        window,
        stride=tuple(attributes.get("strides", (1, 1))),
        padding=_padding(node, attributes),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _padding(node: Any, attributes: dict[str, Any]) -> tuple[int, int]:
    _expect(node, attributes, auto_pad=b"NOTSET")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise InvalidInput(f"{_name(node)}: padding must be the same on opposite sides")
    return top, left


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _constant(node: Any) -> np.ndarray:
    from onnx import numpy_helper

    value = next(iter(_attributes(node).values()))
    return numpy_helper.to_array(value) if hasattr(value, "raw_data") else np.asarray(value)


def _expect(node: Any, attributes: dict[str, Any], **wanted: Any) -> None:
    """Attributes must be absent or have the value that stands for their absence."""
    for name, value in wanted.items():
        got = attributes.get(name, value)
        if got != value:
            raise InvalidInput(f"{_name(node)}: {name} must be {value!r}, but is {got!r}")


def _name(node: Any) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def _unsupported(node: Any) -> InvalidInput:
    return InvalidInput(f"{_name(node)} is not supported; supported are {', '.join(_SUPPORTED)}")
