"""Models and training states on disk: written whole or not at all, read without running code.

A model is `model.safetensors` with its `spec.yaml` beside it; a training state is `state.pt`, read
with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from raycrt import data, network, weights_file
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.spec import ModelSpec, Spec

MODEL = "model.safetensors"
STATE = "state.pt"
CURVATURE = "curvature.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: readers and crashes see the old file or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_model(directory: Path, model: Network, spec: Spec) -> None:
    """Write `model.safetensors` and `spec.yaml` into `directory`, made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(directory)
    exact = weights_file.widened(model.state_dict())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in exact.items()}
    write_atomically(directory / MODEL, save(tensors))


def load_model(directory: Path) -> tuple[Network, Spec]:
    """The network and the spec that `save_model` wrote."""
    file = directory / MODEL
    if not file.is_file():
        raise InvalidInput(f"a model directory must hold {MODEL}, but {directory} does not")
    spec = Spec.load(directory)
    model = network.build(spec.model, data.image_shape(spec.data), data.CLASSES)
    tensors = weights_file.read(file)
    try:
        tensors = weights_file.widened(tensors)
        model = model.to(next((t.dtype for t in tensors.values()), torch.float32))
        model.load_state_dict(tensors)
    except (RuntimeError, InvalidInput) as error:
        raise InvalidInput(
            f"{file} must fit its spec.yaml: {' '.join(str(error).split())}"
        ) from None
    return model.eval(), spec


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, containers of them) as `state.pt`."""
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(directory / STATE, buffer.getvalue())


def load_state(directory: Path) -> dict[str, Any] | None:
    """The training state in `directory`, or none."""
    file = directory / STATE
    return weights_file.read(file) if file.is_file() else None


def save_curvature(directory: Path, digest: str, model: ModelSpec, curvature: Tensor) -> None:
    """Keep the proved curvature (classes, classes) of `model` with weights of hash `digest` beside
    it."""
    content = {**_identity(digest, model), "margin_curvature": curvature.tolist()}
    write_atomically(directory / CURVATURE, json.dumps(content).encode())


def load_curvature(directory: Path, digest: str, model: ModelSpec) -> Tensor | None:
    """The curvature kept beside a model, if it is of `model` with weights of hash `digest`."""
    file = directory / CURVATURE
    content = json.loads(file.read_text()) if file.is_file() else {}
    if any(content.get(key) != value for key, value in _identity(digest, model).items()):
        return None
    return torch.tensor(content["margin_curvature"], dtype=torch.float64)


def _identity(digest: str, model: ModelSpec) -> dict[str, Any]:
    """What a curvature belongs to: the same weights under another activation bend otherwise."""
    return {"weights_sha256": digest, "model": model.model_dump(mode="json")}


def weights_hash(model: Network | dict[str, Tensor]) -> str:
    """SHA-256 over the names, shapes, types and bytes of all weights: the identity of a model.

    Half-precision numbers count as the float32 numbers that they are stored as.
    """
    tensors = weights_file.widened(model if isinstance(model, dict) else model.state_dict())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
