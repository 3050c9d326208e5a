"""Small networks and data that the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from raycrt.activations import Activation, activation
from raycrt.networks.layers.affine import Dense
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
        {"kind": "dense", "width": 9, "activation": "softplus"},
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
}


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
