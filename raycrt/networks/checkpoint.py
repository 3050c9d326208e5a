"""Models and training states on disk: written whole or not at all, read without running code.

A model is `model.safetensors`, whose header states its training, with its `spec.yaml` beside it; a
training state is `state.pt`, read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.networks import network, weights_file
from raycrt.networks.network import Network
from raycrt.specs import Spec, provenance
from raycrt.specs.provenance import Provenance, Training
from raycrt.system.places.outputs import write_atomically
from raycrt.system.places.storage import Place

MODEL = "model.safetensors"
STATE = "state.pt"


def save_model(
    directory: Place, model: Network, spec: Spec, training: Training | None = None
) -> None:
    """Write `model.safetensors` and `spec.yaml` into `directory`, created if it is missing.

    Without `training` the weights come from elsewhere: `spec.yaml` omits `train` and `search`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(directory, without=() if training else ("train", "search"))
    exact = _exact(model.state_dict())
    # A tensor of its own for each name: a layer may be used twice.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in exact.items()}
    header = Provenance(model=spec.model, training=training).header()
    write_atomically(directory / MODEL, save(tensors, header))


def load_provenance(directory: Place) -> Provenance:
    """The provenance recorded in the header of the weights in `directory`."""
    file = directory / MODEL
    if not file.is_file():
        raise InvalidInput(f"a model directory must hold {MODEL}, but {directory} does not")
    said = provenance.read(file)
    if said is None:
        raise InvalidInput(
            f"the header of {file} must state its training, but states none; to certify it "
            f"as a spec describes it: --model {file} --recipe {directory / 'spec.yaml'}"
        )
    return said


def load_model(directory: Place) -> tuple[Network, Spec]:
    """The network and the spec that `save_model` wrote.

    `InvalidInput` where the spec differs from the one with which the weights were trained.
    """
    said = load_provenance(directory)
    file, spec = directory / MODEL, Spec.load(directory)
    said.check(spec, directory)
    model = network.build(spec.model, data.shape(spec.data), len(data.class_names(spec.data)))
    tensors = weights_file.read(file)
    try:
        tensors = _exact(tensors)
        kinds = (t.dtype for t in tensors.values() if t.is_floating_point())
        model = model.to(next(kinds, torch.float32))
        model.load_state_dict(tensors)
    except (RuntimeError, InvalidInput) as error:
        raise InvalidInput(
            f"{file} must fit its spec.yaml: {' '.join(str(error).split())}"
        ) from None
    return model.eval(), spec


def save_state(directory: Place, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, containers of them) as `state.pt`."""
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(directory / STATE, buffer.getvalue())


def load_state(directory: Place) -> dict[str, Any] | None:
    """The training state in `directory`, or None."""
    file = directory / STATE
    return weights_file.read(file) if file.is_file() else None


def weights_hash(model: Network | dict[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, types and bytes of all weights: the identity of a model.

    Half-precision numbers count as the float32 numbers that they are stored as.
    """
    tensors = _exact(model if isinstance(model, dict) else model.state_dict())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _exact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers that are stored: all of one floating-point type, but orders of features whole."""
    orders = {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith(".order") and tensor.dtype == torch.int64
    }
    rest = {name: tensor for name, tensor in tensors.items() if name not in orders}
    return weights_file.widened(rest) | orders
