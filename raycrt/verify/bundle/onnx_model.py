"""Comparison of a bundle's ONNX model with the weights that the certificates are about.

Every weight must be there under its name, bit for bit, used once, and beside it only the sharpness
of a softplus. The graph must have as many nodes of each kind as the layers of the spec, without
branches but skip connections, and compute the same logits at random points, in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raycrt.activations.functions_of_numpy import erf
from raycrt.specs import ModelSpec
from raycrt.verify.bundle.onnx_nodes import most_parts, numbers, operators, sharpnesses
from raycrt.verify.bundle.onnx_order import other_order
from raycrt.verify.findings import Finding
from raycrt.verify.model import Model

# Operators without branches, subgraphs or randomness.
_OPERATORS = {
    *("Add", "Atan", "AveragePool", "BatchNormalization", "Conv", "Div", "Erf", "Flatten", "Gelu"),
    *("Concat", "Gather", "Gemm", "Mul", "Reshape", "Sigmoid", "Softplus", "Split", "Sub", "Tanh"),
    "Unsqueeze",
}
# Largest kernel, step or padding, by which outputs grow, as in specs of layers.
_SIDE = 2**10
# Most features of a result.
_FEATURES = 2**20
# Kinds of attributes: a float, an integer, text, and lists of the first two.
_PLAIN = (1, 2, 3, 6, 7)
_POINTS, _SEED = 16, 20_210_510
# Largest difference of logits, relative to the largest: a constant may be rounded to float32.
_TOLERANCE = 1e-5


def check(
    file: Path,
    tensors: dict[str, np.ndarray],
    spec: ModelSpec,
    model: Model,
    shape: Sequence[int],
) -> list[Finding]:
    """At most one finding: the first thing in which `file` differs from `model`, whose stored
    `tensors` are given by name and its layers by `spec`; an input has the `shape`."""
    sentence = next(_differences(file, tensors, spec, model, tuple(shape)), None)
    return [] if sentence is None else [Finding(sentence=f"{file.name} {sentence}.")]


def _differences(
    file: Path,
    tensors: dict[str, np.ndarray],
    spec: ModelSpec,
    model: Model,
    shape: tuple[int, ...],
) -> Iterator[str]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        loaded = onnx.load_model_from_string(file.read_bytes())
        onnx.checker.check_model(loaded)
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError) as error:
        yield f"must be a model of ONNX: {' '.join(str(error).split())[:150]}"
        return
    yield from _foreign_parts(loaded)
    yield from _other_weights(loaded, tensors, sharpnesses(spec), numbers(spec))
    yield from _other_nodes(loaded, spec, len(shape))
    yield from other_order(loaded, spec)
    try:
        found = _evaluated(loaded, points := _points(shape))
    except Exception as error:  # Any error of a node on what it is given.
        yield f"cannot be evaluated: {' '.join(str(error).split())[:150]}"
        return
    with np.errstate(all="ignore"):
        logits = model.forward(points.reshape(len(points), -1))[0]
    if found.shape != logits.shape:
        yield f"has outputs of shape {found.shape[1:]}, and the network {logits.shape[1:]}"
        return
    same = (found == logits) | (np.isnan(found) & np.isnan(logits))
    finite = np.abs(logits[np.isfinite(logits)])
    with np.errstate(all="ignore"):
        near = np.abs(found - logits) <= _TOLERANCE * max(1e-30, float(finite.max(initial=0)))
    if not (same | near).all():
        row, column = (int(k) for k in np.argwhere(~(same | near))[0])
        yield (
            f"computes another function than the weights: at a random input logit {column} is "
            f"{found[row, column]!r}, and that of the network {logits[row, column]!r}"
        )


def _foreign_parts(loaded: Any) -> Iterator[str]:
    """Parts of a model that a written-out chain of layers does not have."""
    graph = loaded.graph
    if len(loaded.functions) or len(loaded.training_info) or len(graph.sparse_initializer):
        yield "has functions, training or sparse weights"
    if len(graph.input) != 1 or len(graph.output) != 1:
        yield f"has {len(graph.input)} inputs and {len(graph.output)} outputs, not one of each"
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
            yield f"has a node {node.op_type[:50]!r}, which is not one of {sorted(_OPERATORS)}"
        if any(attribute.type not in _PLAIN for attribute in node.attribute):
            yield f"has a node {node.op_type!r} with an attribute that is no number or text"
        pads = node.op_type in ("Conv", "AveragePool")
        if not pads and any(a.name in ("pads", "auto_pad") for a in node.attribute):
            yield f"has a node {node.op_type!r} with padding"
        sides = [n for a in node.attribute if a.name != "group" for n in (a.i, *a.ints)]
        if any(abs(side) > _SIDE for side in sides):
            yield f"has a node {node.op_type!r} with a size of more than {_SIDE}"


def _other_nodes(loaded: Any, spec: ModelSpec, axes: int) -> Iterator[str]:
    """Kinds of nodes of which there are more or fewer than the layers have, apart from Flatten, and
    results that are used more often than a skip connection or a silu uses them."""
    found = Counter(node.op_type for node in loaded.graph.node if node.op_type != "Flatten")
    wanted = operators(spec, axes)
    for kind in sorted({*found, *wanted}):
        if found[kind] != wanted[kind]:
            yield f"has {found[kind]} nodes {kind!r}, and the layers {wanted[kind]}"
    uses = Counter(name for node in loaded.graph.node for name in node.input)
    made = [name for node in loaded.graph.node for name in node.output]
    twice = sum(uses[name] > 1 for name in (loaded.graph.input[0].name, *made))
    joined = wanted["Add"] + wanted["Concat"] + min(wanted["Sigmoid"], wanted["Mul"])
    if twice > joined or any(uses[name] > most_parts(spec) for name in made):
        yield f"uses {twice} results more than once, and the layers {joined} at most"


def _other_weights(
    loaded: Any,
    tensors: dict[str, np.ndarray],
    sharpnesses: Sequence[float],
    integers: Sequence[list[int]],
) -> Iterator[str]:
    """Weights that are not those of the network, and constants that are neither `sharpnesses` nor
    among the lists of `integers`."""
    from onnx import numpy_helper

    uses = Counter(name for node in loaded.graph.node for name in node.input)
    missing = set(tensors)
    for stored in loaded.graph.initializer:
        if stored.external_data or stored.data_location:
            yield f"has {stored.name[:50]!r} in another file"
            return
        values, name = numpy_helper.to_array(stored), stored.name
        missing.discard(name)
        if name not in tensors:
            listed = values.tolist() if values.dtype.kind == "i" and values.ndim == 1 else []
            # A shape of what a layer of each feature takes.
            stated = listed in integers or (len(listed) in (2, 4) and listed[0] == 0)
            known = values.dtype.kind == "f" and values.size == 1
            near = np.isclose(values, sharpnesses or np.nan, rtol=1e-6, atol=0) if known else False
            if not stated and not np.any(near):
                yield f"has a weight {name[:50]!r}, which the network does not have"
        elif values.dtype != tensors[name].dtype or values.shape != tensors[name].shape:
            yield f"has {name!r} of another type or shape than the network"
        elif values.tobytes() != tensors[name].tobytes():
            yield f"has other numbers in {name!r} than the network"
        elif uses[name] != 1:
            yield f"uses {name!r} {uses[name]} times, not once"
    if missing:
        yield f"lacks the weights {min(missing)!r}"


def _points(shape: tuple[int, ...]) -> np.ndarray:
    """Random inputs (n, *shape): half of them uniform in [0, 1], the others on wider scales."""
    rng = np.random.default_rng(_SEED)
    inner = rng.random((_POINTS // 2, *shape))
    scales = 2.0 ** np.arange(_POINTS // 2).reshape(-1, *[1] * len(shape))
    return np.concatenate([inner, scales * rng.standard_normal((_POINTS // 2, *shape))])


def _evaluated(loaded: Any, points: np.ndarray) -> np.ndarray:
    """The logits (n, classes) in float64, by the reference evaluator of the onnx package."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class Erf(OpRun):
        """That of the package is rounded to float32."""

        op_domain = ""

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (erf(x),)

    class Gelu(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
            if approximate != "none":
                raise ValueError(f"Gelu is exact, not {approximate!r}")
            return (x * (0.5 * (1 + erf(x / np.sqrt(2.0)))),)

    class Add(OpRun):
        """Of tensors of one shape, or a number for each feature: others would grow by
        broadcasting."""

        op_domain = ""

        def _run(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
            return (x + (y if y.shape == x.shape[1:] else _fitting(y, x.shape)),)

    class Mul(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
            return (x * (y if y.shape in ((), x.shape[1:]) else _fitting(y, x.shape)),)

    class Sub(OpRun):
        """Of a number for each channel or feature, as Div."""

        op_domain = ""

        def _run(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
            return (x - _of_channels(y, x.shape),)

    class Div(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
            return (x / _of_channels(y, x.shape),)

    class Concat(OpRun):
        """Results that are used again would grow with each of them."""

        op_domain = ""

        def _run(self, *parts: np.ndarray, axis: int) -> tuple[np.ndarray]:
            if sum(part.shape[axis] for part in parts) > _FEATURES:
                raise ValueError(f"a result has at most {_FEATURES} features")
            return (np.concatenate(parts, axis=axis),)

    for stored in loaded.graph.initializer:
        held = numpy_helper.to_array(stored)
        if held.dtype.kind == "f":
            held = held.astype(np.float64)
        stored.CopyFrom(numpy_helper.from_array(held, stored.name))
    evaluator = ReferenceEvaluator(loaded, new_ops=[Add, Concat, Div, Erf, Gelu, Mul, Sub])
    with np.errstate(all="ignore"):
        (found,) = evaluator.run(None, {loaded.graph.input[0].name: points})
    return np.asarray(found, np.float64)


def _of_channels(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return _fitting(values, (shape[1], *(1 for _ in shape[2:])))


def _fitting(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape != shape:
        raise ValueError(f"operands have one shape, not {shape} and {values.shape}")
    return values
