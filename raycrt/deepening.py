"""Deeper networks from shallower ones: isometries in front, run where the activation is straight.

Global curvature bounds multiply the norms of all layers before a bend, so that deep networks that
were trained as such certify worse than shallow ones. Layers that hardly bend cost hardly anything.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from raycrt.affine import Dense
from raycrt.errors import require
from raycrt.network import TORCH, Network

# Where softplus and its kin are nearly straight; activations with two flat ends are so at 0.
_STRAIGHT = 6.0


@torch.no_grad()
def deepened(network: Network, layers: int, scale: float) -> Network:
    """`network` with `layers` more dense layers in front, as wide as its first, and nearly its
    logits.

    Each new layer is an isometry Q, its argument `c + scale Q x`, c a point where s is straight;
    the next layer takes c and scale out again. Logits change by terms of the order
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
    point = torch.tensor(
        _STRAIGHT if network.activation.slope_limits[1] else 0.0, dtype=torch.float64
    )
    value = network.activation.value(point, TORCH)
    slope = network.activation.slope(point, TORCH)
    maps: list[Dense] = []
    # The signal x is `undo (a - value)`, a the activations before the next layer.
    undo = torch.eye(first.in_features, dtype=torch.float64)
    centre = torch.zeros(first.in_features, dtype=torch.float64)
    for index in range(layers):
        isometry = _isometry(first.out_features, first.in_features, seed=index)
        weight = scale * isometry @ undo
        maps.append(_dense(weight, point - weight @ centre, like))
        undo = isometry.T / (scale * slope)
        centre = value.expand(first.out_features)
    weight = first.matrix().double().cpu() @ undo
    maps.append(_dense(weight, first.offset().double().cpu() - weight @ centre, like))
    rest = copy.deepcopy(network.layers[1:])
    return Network([*maps, *rest], network.activation).requires_grad_(like.requires_grad)


def _isometry(rows: int, columns: int, seed: int) -> Tensor:
    """A random matrix (rows, columns) with orthonormal columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal / math.sqrt(rows)).Q


def _dense(weight: Tensor, bias: Tensor, like: Tensor) -> Dense:
    layer = Dense(weight.shape[1], weight.shape[0]).to(like)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
