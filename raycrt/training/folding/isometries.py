"""A deeper network from a shallower one, by isometries in front at whose outputs the activation is
nearly linear.

Global curvature bounds multiply the norms of all layers before a curved one, so layers with hardly
any curvature add hardly anything to the bound.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from raycrt.errors import require
from raycrt.networks.layers.affine import Dense
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import TORCH, Nonlinearity
from raycrt.training.folding.dense import dense

# A point where softplus, GELU and SiLU are nearly linear; saturating activations are so at 0.
_NEARLY_LINEAR = 6.0


@torch.no_grad()
def deepened(network: Network, layers: int, scale: float) -> Network:
    """`network` with `layers` more dense layers in front, as wide as its first; the logits nearly
    agree.

    Each new layer applies an isometry Q: its output is `c + scale Q x`, with c a point where s is
    nearly linear; the next layer removes c and scale again. Logits change by terms of the order
    `scale |x|^2 s''(c) / s'(c)` and the curvature of a margin by terms of the order
    `scale sup|s''|`; both vanish with `scale`. Where s'(c) is less than the steepest slope of s,
    as for gelu and silu, every layer multiplies the curvature by their ratio squared.
    """
    if layers == 0:
        return network
    first = network.layers[0]
    require(
        first.in_features <= first.out_features,
        "train.linear_layers needs no more inputs (or train.components) than model.width",
        inputs=first.in_features,
        width=first.out_features,
    )
    like = next(network.parameters())
    activation = network.nonlinearities[0].activation
    point = torch.tensor(_NEARLY_LINEAR if activation.slope_limits[1] else 0.0).double()
    value, slope = activation.value(point, TORCH), activation.slope(point, TORCH)
    maps: list[Dense] = []
    # The signal x is `undo (a - value)`, a the activations before the next layer.
    undo = torch.eye(first.in_features, dtype=torch.float64)
    centre = torch.zeros(first.in_features, dtype=torch.float64)
    for index in range(layers):
        isometry = _isometry(first.out_features, first.in_features, seed=index)
        weight = scale * isometry @ undo
        maps.append(dense(weight, point - weight @ centre, like))
        undo = isometry.T / (scale * slope)
        centre = value.expand(first.out_features)
    weight = first.matrix().double().cpu() @ undo
    maps.append(dense(weight, first.offset().double().cpu() - weight @ centre, like))
    rest = copy.deepcopy(network.layers[1:])
    width = first.out_features
    inserted = [Nonlinearity(activation=activation, active=width, width=width)] * layers
    whole = Network([*maps, *rest], [*inserted, *network.nonlinearities])
    return whole.requires_grad_(like.requires_grad)


def _isometry(rows: int, columns: int, seed: int) -> Tensor:
    """A random matrix (rows, columns) with orthonormal columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal / math.sqrt(rows)).Q
