"""Networks from files: run directories, ONNX files, and weights with a spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raycrt.errors import InvalidInput
from raycrt.foreign import onnx_graph
from raycrt.foreign.weights import state_dict
from raycrt.foreign.weights.network import from_state_dict
from raycrt.networks import checkpoint, weights_file
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec
from raycrt.system.storage import Place, exists, given, is_directory, local

SUFFIXES = (".onnx", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt.tar", ".pth.tar")


def load(
    path: Place | str,
    spec: ModelSpec | None = None,
    input_shape: Sequence[int] | None = None,
    *,
    images: Tensor | None = None,
    key: str | None = None,
    layers: Sequence[str] | None = None,
    batch_norm_eps: float | None = None,
) -> Network:
    """The network in a file or a directory, by its kind.

    `path`, a local one or a URI, is a directory that raycrt wrote, an ONNX file, or weights
    (`.safetensors`, or a file of `torch.save`: `.pt`, `.pth`, `.ckpt`, `.bin`, `.pth.tar`; read
    without running code), for which `spec` states the activation. `input_shape`, without the batch,
    is needed where convolutions come first and the file does not state it. An ONNX file is compared
    with the network read from it, also at some of the `images` (n, ...) if they are given. `key` is
    the dotted path of the state dict in the file; for `layers` and `batch_norm_eps` see
    `from_state_dict`. Raises `InvalidInput`.
    """
    path = given(path)
    name = path.name.lower()
    options = {"key": key, "layers": layers, "batch_norm_eps": batch_norm_eps}
    if is_directory(path):
        _refuse(path, options)
        network = checkpoint.load_model(path)[0]
    elif not name.endswith(SUFFIXES):
        raise InvalidInput(
            f"a model must be a run directory or a file in {SUFFIXES}, but got {path}"
        )
    elif not exists(path):
        raise InvalidInput(f"a model file must exist, but there is none at {path}")
    elif name.endswith(".onnx"):
        _refuse(path, options)
        with local(path) as file:
            network = onnx_graph.read(file, input_shape, images)
    elif spec is None:
        raise InvalidInput(f"a spec of the model must be given with a file of weights, {path}")
    else:
        content = weights_file.read(path)
        try:
            network = from_state_dict(
                state_dict.choose(content, key),
                spec,
                input_shape,
                layers=layers,
                batch_norm_eps=batch_norm_eps,
                # This format stores tensors by size.
                ordered=not name.endswith(".safetensors"),
            )
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None
    if input_shape is not None and network.features != math.prod(input_shape):
        raise InvalidInput(
            f"{path} must be a model of inputs of shape {tuple(input_shape)}, but takes "
            f"{network.features} numbers"
        )
    return network


def is_weights(path: Place) -> bool:
    """Whether `path` is by its name a weights file, which does not state its activation."""
    return not is_directory(path) and path.name.lower().endswith(SUFFIXES[1:])


def _refuse(path: Place, given: dict[str, Any]) -> None:
    """Refuse options on how weights are read for a model that states all of this itself."""
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise InvalidInput(f"{', '.join(extra)} must be left out unless {path} is a weights file")
