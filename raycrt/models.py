"""Models in files as networks: run directories, ONNX files, weights with a spec."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raycrt import checkpoint, network, onnx_graph
from raycrt.activations import ACTIVATIONS, activation
from raycrt.affine import Dense
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.sequential import as_network as as_network
from raycrt.spec import ModelSpec, Spec

SUFFIXES = (".onnx", ".safetensors", ".pt", ".pth")


def load(
    path: Path | str,
    spec: ModelSpec | None = None,
    input_shape: Sequence[int] | None = None,
    *,
    images: Tensor | None = None,
) -> Network:
    """The network in a file or a directory, by its kind.

    A directory that raycrt wrote; an ONNX file; or weights (`.safetensors`, `.pt`, `.pth`, read
    without running code), for which `spec` states the model. `input_shape`, without the batch, is
    needed where convolutions come first and the file does not state it. What an ONNX file computes
    is compared at some of the `images` (n, ...), if there are any. Raises `InvalidInput`.
    """
    path = Path(path)
    if path.is_dir():
        return checkpoint.load_model(path)[0]
    if path.suffix not in SUFFIXES:
        raise InvalidInput(
            f"a model must be a run directory or a file in {SUFFIXES}, but got {path}"
        )
    if not path.is_file():
        raise InvalidInput(f"a model file must exist, but there is none at {path}")
    if path.suffix == ".onnx":
        return onnx_graph.read(path, input_shape, images)
    if spec is None:
        raise InvalidInput(f"a spec of the model must be given with a file of weights, {path}")
    return from_state_dict(_read_weights(path), spec, input_shape)


def described(path: Path, network: Network, spec: ModelSpec) -> ModelSpec | None:
    """What the `network` that `load(path, spec)` gave really is; none where no spec can say it."""
    if path.is_dir():
        return Spec.load(path).model
    return dense_spec(network) if path.suffix == ".onnx" else spec


def dense_spec(network: Network) -> ModelSpec | None:
    """The spec of a network of dense layers whose hidden ones are of one width, else none."""
    layers, given = network.layers, network.activation
    widths = {layer.out_features for layer in layers[:-1]}
    if len(widths) > 1 or any(type(layer) is not Dense for layer in layers):
        return None
    # The curvature of softplus at 0 is a quarter of its sharpness.
    top = given.curvature_range[1] / activation("softplus").curvature_range[1]
    beta = float(f"{top:.12g}") if given.name == "softplus" else 1.0
    if given.name not in ACTIVATIONS:
        return None
    if activation(given.name, beta).curvature_range != given.curvature_range:
        return None
    try:
        return ModelSpec(depth=len(layers), width=widths.pop(), activation=given.name, beta=beta)
    except ValidationError:  # More layers than a spec may have.
        return None


def from_state_dict(
    tensors: dict[str, Tensor], spec: ModelSpec, input_shape: Sequence[int] | None = None
) -> Network:
    """The network of `spec` with `tensors` as its weights.

    Names that are the network's own decide; others are taken in their order: weight and bias of
    the first layer, of the second, ... `input_shape` is needed where `spec` has convolutions.
    Raises `InvalidInput` where numbers or shapes differ.
    """
    weights = [t for t in tensors.values() if t.dim() == 2]
    if not weights:
        raise InvalidInput(
            f"weights must hold a matrix for each layer, but got {_listing(tensors)}"
        )
    if spec.channels and input_shape is None:
        raise InvalidInput("input_shape must be given where the spec has convolutions")
    shape = input_shape if spec.channels and input_shape else weights[0].shape[1:]
    model = network.build(spec, shape, weights[-1].shape[0])
    own = model.state_dict()
    named = tensors if set(tensors) == set(own) else dict(zip(own, tensors.values(), strict=False))
    wanted = [tuple(t.shape) for t in own.values()]
    if len(tensors) != len(own) or any(named[n].shape != t.shape for n, t in own.items()):
        raise InvalidInput(
            f"weights must have the spec's shapes {wanted} in this order, but got "
            f"{_listing(tensors)}"
        )
    model = model.to(weights[0].dtype)
    model.load_state_dict(named)
    return model.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, in the model's order: as stored, or by the numbers in their names."""
    try:
        if path.suffix == ".safetensors":
            # This format stores tensors by size, so that only the names tell the order.
            found = load_file(path)
            return {name: found[name] for name in sorted(found, key=_natural)}
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        first = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"{path} must hold tensors only, as torch.save(model.state_dict()) writes them: {first}"
        ) from None
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not all(isinstance(t, Tensor) for t in stored.values()):
        raise InvalidInput(f"{path} must hold tensors by name, but holds {type(stored).__name__}")
    return dict(stored)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `layers.10` after `layers.2`, and a layer's weight before its bias."""
    ordered = re.sub(r"bias$", "~bias", name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", ordered)]


def _listing(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items()) or "nothing"
