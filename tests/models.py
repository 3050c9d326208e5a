"""Small networks and data that the tests share."""

from __future__ import annotations

from itertools import pairwise

import torch

from raycrt.activations import Activation, activation
from raycrt.networks.affine import Dense
from raycrt.networks.network import Network

LINEAR = Activation(
    name="linear",
    value=lambda z, xp: z,
    slope=lambda z, xp: 1.0 + 0.0 * z,
    curvature=lambda z, xp: 0.0 * z,
    slope_critical=(),
    curvature_critical=(),
    slope_limits=(1.0, 1.0),
)


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
