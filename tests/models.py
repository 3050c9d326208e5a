"""Small networks and data that the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from raycrt.activations import Activation, activation
from raycrt.networks.layers.affine import Dense
from raycrt.networks.layers.diagonal import Normalization, Permutation, Scaling, Standardization
from raycrt.networks.network import Network, build
from raycrt.specs import ModelSpec

LINEAR = Activation(
    name="linear",
    value=lambda z, xp: z,
    slope=lambda z, xp: 1.0 + 0.0 * z,
    curvature=lambda z, xp: 0.0 * z,
    slope_critical=(),
    curvature_critical=(),
    slope_limits=(1.0, 1.0),
)


# Networks whose layers differ: in width and activation, with residual blocks and without.
MIXED: dict[str, list[dict[str, Any]]] = {
    "widths and activations": [
        {"kind": "dense", "width": 9, "activation": "softplus", "beta": 3.0},
        {"kind": "dense", "width": 4, "activation": "tanh"},
        {"kind": "dense", "width": 7, "activation": "silu"},
    ],
    "residual": [
        {"kind": "residual", "width": 6, "activation": "tanh"},
        {"kind": "dense", "width": 8, "activation": "gelu"},
        {"kind": "residual", "width": 5},
        {"kind": "residual", "width": 7, "activation": "silu"},
    ],
    "block": [
        {
            "kind": "block",
            "branch": [
                {"kind": "dense", "width": 6, "activation": "tanh"},
                {"kind": "dense", "width": 7},
                {"kind": "dense", "width": 8, "activation": "none"},
            ],
            "shortcut": {"kind": "dense", "width": 8, "activation": "none"},
            "activation": "silu",
        },
        {
            "kind": "block",
            "branch": [
                {"kind": "dense", "width": 6},
                {"kind": "dense", "width": 8, "activation": "none"},
            ],
        },
    ],
    "linear between": [
        {"kind": "dense", "width": 8, "activation": "none"},
        {"kind": "dense", "width": 7, "activation": "sigmoid"},
        {"kind": "dense", "width": 6, "activation": "none"},
        {"kind": "dense", "width": 9},
    ],
    "normalised": [
        {"kind": "batch_normalization", "eps": 0.001},
        {"kind": "scaling"},
        {"kind": "dense", "width": 8, "activation": "none"},
        {"kind": "batch_normalization", "activation": "tanh"},
        {"kind": "batch_normalization", "activation": "gelu"},
        {"kind": "permutation"},
        {"kind": "residual", "width": 6},
        {"kind": "batch_normalization", "activation": "silu"},
        {"kind": "scaling"},
    ],
}
MIXED_IMAGES: dict[str, list[dict[str, Any]]] = {
    "convolutions and pools": [
        {"kind": "convolution", "channels": 4, "padding": 1, "activation": "tanh"},
        {"kind": "average_pool", "window": 2},
        {"kind": "convolution", "channels": 6, "kernel": 2, "groups": 2, "activation": "none"},
        {"kind": "flatten"},
        {"kind": "dense", "width": 9},
    ],
    "block of convolutions": [
        {
            "kind": "block",
            "branch": [
                {"kind": "convolution", "channels": 3, "padding": 1, "stride": 2},
                {"kind": "convolution", "channels": 4, "padding": 1, "activation": "tanh"},
                {"kind": "convolution", "channels": 4, "padding": 1, "activation": "none"},
            ],
            "shortcut": {
                "kind": "convolution",
                "channels": 4,
                "kernel": 1,
                "stride": 2,
                "activation": "none",
            },
            "activation": "tanh",
        },
        {"kind": "dense", "width": 6},
    ],
    "residual convolutions": [
        {"kind": "convolution", "channels": 4, "stride": 2, "padding": 1},
        {"kind": "residual", "width": 3, "kernel": 3, "activation": "tanh"},
        {"kind": "average_pool", "window": 2},
        {"kind": "residual", "width": 6},
    ],
    "normalised images": [
        {"kind": "batch_normalization"},
        {
            "kind": "convolution",
            "channels": 4,
            "kernel": [3, 2],
            "stride": [2, 1],
            "padding": [1, 2],
            "dilation": [1, 2],
            "activation": "none",
        },
        {"kind": "batch_normalization", "activation": "tanh"},
        {"kind": "average_pool", "window": [3, 2], "stride": 1, "padding": [1, 0]},
        {"kind": "batch_normalization", "per": "feature", "activation": "sigmoid"},
        {"kind": "dense", "width": 12, "activation": "none"},
        {"kind": "unflatten", "shape": [3, 2, 2]},
        {"kind": "convolution", "channels": 5, "padding": 1},
        {"kind": "average_pool", "window": "global"},
    ],
}


def drawn(network: Network) -> None:
    """Random numbers in place of those with which layers that act on each feature begin."""
    for layer in network.modules():
        if isinstance(layer, Permutation):
            layer.order = torch.randperm(layer.in_features)
        elif isinstance(layer, Normalization | Scaling | Standardization):
            for parameter in layer.parameters():
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            for name, buffer in layer.named_buffers():
                size = torch.rand_like(buffer)
                setattr(layer, name, size - 0.5 if name == "mean" else size + 0.4)


def mixed_network(
    layers: list[dict[str, Any]],
    *,
    shape: Sequence[int] = (5,),
    classes: int = 4,
    gain: float = 2.0,
    seed: int = 0,
) -> Network:
    """A network of `layers`, as a recipe lists them, with random weights, `gain` times the usual
    size."""
    torch.manual_seed(seed)
    network = build(ModelSpec.model_validate({"layers": layers}), shape, classes)
    drawn(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= gain
    return network


def random_network(
    depth: int = 2,
    *,
    features: int = 5,
    width: int = 12,
    classes: int = 4,
    name: str | Activation = "softplus",
    gain: float = 2.0,
    seed: int = 0,
) -> Network:
    """A network with random weights, `gain` times the usual size so that it bends."""
    torch.manual_seed(seed)
    sizes = [features] + [width] * (depth - 1) + [classes]
    maps = [Dense(a, b) for a, b in pairwise(sizes)]
    record = activation(name) if isinstance(name, str) else name
    network = Network(maps, record)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= gain
    return network
