"""Attributes, optional inputs and names of ONNX nodes."""

from __future__ import annotations

from typing import Any

from raycrt.errors import InvalidInput

SUPPORTED = (
    "Add, Sub, Mul, Div by constants, Neg, Gemm, MatMul, Conv, BatchNormalization, AveragePool, "
    "GlobalAveragePool, ReduceMean, Flatten, Reshape, Squeeze, Unsqueeze, Transpose, Cast, "
    "Dropout, Identity; Atan, Erf, Gelu, Sigmoid, Softplus, Tanh; at the end Softmax, LogSoftmax, "
    "Sigmoid, ArgMax"
)


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def given(node: Any, index: int) -> bool:
    """Whether an optional input is given."""
    return len(node.input) > index and node.input[index] != ""


def expect(node: Any, **wanted: Any) -> None:
    """Raise `InvalidInput` unless the attributes named are absent or have these default values."""
    stated = attributes(node)
    for name, value in wanted.items():
        got = stated.get(name, value)
        if got != value:
            raise InvalidInput(f"{name} must be {value!r}, but is {got!r}")


def described(node: Any) -> str:
    """The name of a node in messages."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"node {node.name or node.output[0]!r} ({kind})"


def type_name(kind: int) -> str:
    """The name of an element type."""
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(kind))
