"""Networks from files: run directories, ONNX files, and weights with a spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from raycrt.errors import InvalidInput
from raycrt.foreign import onnx_graph
from raycrt.foreign.modules import exported
from raycrt.foreign.modules.reader import as_network
from raycrt.foreign.weights import state_dict
from raycrt.foreign.weights.network import from_state_dict
from raycrt.networks import checkpoint, weights_file
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec
from raycrt.system.places.storage import Place, exists, given, is_directory, local

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt.tar", ".pth.tar")
SUFFIXES = (".onnx", ".pt2", *_WEIGHTS)


def load(
    path: Place | str,
    spec: ModelSpec | None = None,
    input_shape: Sequence[int] | None = None,
    *,
    images: Tensor | None = None,
    key: str | None = None,
    layers: Sequence[str] | None = None,
    batch_norm_eps: float | None = None,
    run_code: bool = False,
) -> Network:
    """The network in a file or a directory, by its kind.

    `path`, a local one or a URI, is a directory that raycrt wrote, an ONNX file, an archive of
    `torch.export.save` (`.pt2`, with `run_code` alone, as torch may run code of it), or weights
    (`.safetensors`, or a file of `torch.save`: `.pt`, `.pth`, `.ckpt`, `.bin`, `.pth.tar`; read
    without running code), for which `spec` states the activation. `input_shape`, without the batch,
    is needed where convolutions come first and the file does not state it. A graph is compared
    with the network read from it, also at some of the `images` (n, ...) if they are given. `key` is
    the dotted path of the state dict in the file; for `layers` and `batch_norm_eps` see
    `from_state_dict`. Raises `InvalidInput`.
    """
    path = given(path)
    name = path.name.lower()
    if run_code and not name.endswith(".pt2"):
        raise InvalidInput(f"run_code must be left out unless the model is a .pt2 file, not {path}")
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
    elif name.endswith(".pt2"):
        _refuse(path, options)
        if not run_code:
            raise InvalidInput(
                f"{path} is an archive of torch.export, which torch may run code of: it is read "
                "only with --run-code (from Python: run_code=True), for a file that you trust; "
                "an ONNX file needs no trust"
            )
        with local(path) as file:
            network = as_network(exported.load(file), input_shape, images)
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
    return not is_directory(path) and path.name.lower().endswith(_WEIGHTS)


def _refuse(path: Place, given: dict[str, Any]) -> None:
    """Refuse options on how weights are read for a model that states all of this itself."""
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise InvalidInput(f"{', '.join(extra)} must be left out unless {path} is a weights file")
