"""A network of a spec as an ONNX model, written from its stored weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto, checker

from raycrt.evidence.onnx_graph import Graph
from raycrt.foreign.equivalence import require_same_function
from raycrt.foreign.onnx_graph.reference import Reference
from raycrt.networks.network import Network
from raycrt.specs import ModelSpec


def written(
    tensors: Mapping[str, np.ndarray], spec: ModelSpec, shape: Sequence[int]
) -> ModelProto | None:
    """The model from `input` (n, *shape) to `logits` (n, classes), with the `tensors` of a
    `model.safetensors` under their names; None if a layer or an activation has no operator."""
    graph = Graph(tensors, spec, tuple(shape))
    if spec.normalize:
        graph.normalize()
    if not all(graph.add(layer) for layer in spec.hidden_layers):
        return None
    return graph.model()


def check(model: ModelProto, network: Network, shape: Sequence[int], images: torch.Tensor) -> None:
    """Raise `InvalidInput` unless the reference evaluator computes the logits of `network` at
    `images` and at random inputs."""
    checker.check_model(model, full_check=True)
    reference = Reference(model, "logits", predicts=False)
    require_same_function(reference, network, shape, given=images)
