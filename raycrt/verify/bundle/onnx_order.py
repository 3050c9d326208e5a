"""The order of the activations in an ONNX model.

Points that are compared may lie where two activations agree, as tanh and erf do far from 0: what
they are is compared one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import numpy as np

from raycrt.activations import FAMILIES
from raycrt.specs import ModelSpec
from raycrt.specs.affine import LINEAR, Acting
from raycrt.specs.layers import BlockLayer, LayerSpec, ResidualLayer

_NAMES = {
    "Atan": "arctan",
    "Erf": "erf",
    "Gelu": "gelu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Tanh": "tanh",
}


def other_order(loaded: Any, spec: ModelSpec) -> Iterator[str]:
    """At most one sentence: the first activation that is not the one of the layers in its place."""
    found, wanted = list(_found(loaded)), list(_wanted(spec))
    for number, (one, other) in enumerate(zip_longest(found, wanted, fillvalue=("none", 1.0))):
        if one[0] != other[0] or not np.isclose(one[1], other[1], rtol=1e-6, atol=0):
            yield (
                f"has as activation {number} {one[0]} of sharpness {one[1]:g}, and the layers "
                f"{other[0]} of sharpness {other[1]:g}"
            )
            return


def _found(loaded: Any) -> Iterator[tuple[str, float]]:
    """Name and sharpness of the activations of a graph, whose nodes stand in their order."""
    from onnx import numpy_helper

    graph = loaded.graph
    single = {
        stored.name: numpy_helper.to_array(stored).item()
        for stored in graph.initializer
        if not stored.external_data and numpy_helper.to_array(stored).size == 1
    }
    products = [node for node in graph.node if node.op_type == "Mul"]
    for node in graph.node:
        name = _NAMES.get(node.op_type)
        if name is None:
            continue
        if name == "sigmoid" and any(
            {*each.input} == {node.input[0], node.output[0]} for each in products
        ):
            name = "silu"
        before = [each for each in products if each.output[0] == node.input[0]]
        factors = [single[one] for each in before for one in each.input if one in single]
        yield name, factors[0] if name in FAMILIES and factors else 1.0


def _wanted(spec: ModelSpec) -> Iterator[tuple[str, float]]:
    """Name and sharpness of the activations of the layers."""
    for layer in spec.hidden_layers:
        for each in (*layer.branch, layer) if isinstance(layer, BlockLayer) else (layer,):
            if (acting := _acting(each, spec)) is not None:
                yield acting


def _acting(layer: LayerSpec, spec: ModelSpec) -> tuple[str, float] | None:
    if not isinstance(layer, Acting | ResidualLayer) or layer.activation == LINEAR:
        return None
    name = layer.activation or spec.activation
    return name, (layer.beta or spec.beta) if name in FAMILIES else 1.0
