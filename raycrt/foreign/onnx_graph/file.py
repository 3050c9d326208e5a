"""An ONNX file as a checked model with one input and one output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raycrt.errors import InvalidInput, require
from raycrt.foreign.onnx_graph.nodes import described

# In older ones, attributes state how operations broadcast and whether dropout trains.
_OLDEST_OPSET = 7
# A size that the file leaves open.
_OPEN = -1


def load(path: Path) -> Any:
    """The model in a file, with external data read and local functions inlined.

    Raises `InvalidInput` for a damaged file, an opset, input or output that cannot be read, and a
    node of a custom domain.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.inliner import inline_local_functions
    except ImportError:
        raise InvalidInput(
            "the onnx package must be installed to read ONNX files: pip install onnx"
        ) from None
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        model = inline_local_functions(model)
    except (
        DecodeError,
        onnx.checker.ValidationError,
        OSError,
        RuntimeError,
        UnicodeDecodeError,
        ValueError,
    ) as error:
        first = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{path} must be a valid ONNX file: {first}") from None
    opset = opsets(model).get("", 0)
    newest = onnx.defs.onnx_opset_version()
    require(
        _OLDEST_OPSET <= opset <= newest,
        f"the opset is one of {_OLDEST_OPSET} to {newest}, which the installed onnx knows",
        opset=opset,
    )
    graph = model.graph
    require(
        not graph.sparse_initializer, "no sparse initializers", count=len(graph.sparse_initializer)
    )
    require(len(inputs(graph)) == 1, "one input", inputs=[i.name for i in inputs(graph)])
    require(len(graph.output) == 1, "one output", outputs=[o.name for o in graph.output])
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise InvalidInput(f"{described(node)}: operations of custom domains are not supported")
        node.domain = ""
    return model


def opsets(model: Any) -> dict[str, int]:
    """Versions by domain; the standard one is ''."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}


def inputs(graph: Any) -> list[Any]:
    """The inputs that have no initializer."""
    stored = {t.name for t in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def input_shape(graph: Any, given: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one input, without the batch in front, as the graph takes it.

    `given` is the shape of the inputs at hand. It must equal the one that the file states, except
    for sizes that the file leaves open, dimensions of size 1, and flattening where its order is
    unique: images with several channels are flattened in more than one order.
    """
    given = None if given is None else tuple(given)
    stated = _sizes(graph)
    sizes = stated[1:]
    require(
        stated[:1] in ([_OPEN], [0], [1]) and len(sizes) > 0 and 0 not in sizes,
        "input has a batch in front, 1 or open, and features",
        shape=stated,
    )
    if given is not None and sizes == [_OPEN]:
        sizes = [math.prod(given)]
    if given is not None and len(given) == len(sizes):
        sizes = [g if s == _OPEN else s for s, g in zip(sizes, given, strict=True)]
    if min(sizes) < 0:
        raise InvalidInput(f"input_shape must be given, as the file leaves it open: {sizes}")
    if given is None or _same_order(tuple(sizes), given):
        return tuple(sizes)
    raise InvalidInput(
        f"the file takes inputs {tuple(sizes)}, but those at hand are {given}: the order of the "
        "pixels is ambiguous"
    )


def _same_order(stated: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """Whether both shapes hold the same numbers in the same order: apart from sizes of 1, they are
    equal, or one is flat and the other has only rows and columns."""
    long = [[size for size in shape if size > 1] for shape in (stated, given)]
    flat = min(len(sizes) for sizes in long) <= 1 and max(len(sizes) for sizes in long) <= 2
    return long[0] == long[1] or (flat and math.prod(stated) == math.prod(given))


def batch_is_open(graph: Any) -> bool:
    """Whether the graph takes batches of any size."""
    return _sizes(graph)[0] != 1


def _sizes(graph: Any) -> list[int]:
    """The sizes of the input, the batch's first."""
    shape = inputs(graph)[0].type.tensor_type.shape
    return [d.dim_value if d.HasField("dim_value") else _OPEN for d in shape.dim]
