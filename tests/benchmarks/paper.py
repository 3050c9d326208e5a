"""The named baseline: the certificate of Singla & Feizi (2020) as published, written afresh.

Runner-up class only; nested bisection of the multiplier eta in [0, 1/m] (30 rounds) around 20
majorise-minimise steps `x <- (x0 - eta g(x) + eta M x) / (1 + eta M)`; gradients by autograd in
batches of 100 images; the curvature bounds by 50 power iterations for each image; float32. As
published it states `sqrt(2 phi)` where the dual gradient is below 1e-5 and nothing elsewhere.

With a proved `curvature` in place of power iterations, and in float64, it states what it should.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycrt.networks.network import Network

BATCH = 100
ROUNDS, STEPS, POWER = 30, 20, 50


def certify(network: Network, images: Tensor, curvature: Tensor | None = None) -> Tensor:
    """Runner-up radii (n,) of a two-layer softplus network, as the published method states them;
    with `curvature` (classes, classes) by that and in float64."""
    images = images.flatten(1)
    if curvature is not None:
        network, images = network.in_float64(), images.double()
    return torch.cat([_batch(network, rows, curvature) for rows in images.split(BATCH)])


def _batch(network: Network, x0: Tensor, curvature: Tensor | None) -> Tensor:
    with torch.no_grad():
        first, second = network(x0).topk(2, dim=1).indices.T
        if curvature is None:
            w1, w2 = (layer.matrix().detach() for layer in network.layers)
            difference = w2[first] - w2[second]
            low = _power(w1, difference.clamp(max=0).abs()) / 4
            high = _power(w1, difference.clamp(min=0)) / 4
        else:
            low, high = curvature[first, second][:, None], curvature[second, first][:, None]
    lower, upper = torch.zeros_like(low), 1 / low
    x = x0.clone()
    for _ in range(ROUNDS):
        eta = (lower + upper) / 2
        for _ in range(STEPS):
            value, gradient = _margin(network, x, first, second)
            x = (x0 - eta * gradient + eta * high * x) / (1 + eta * high)
        value, gradient = _margin(network, x, first, second)
        outside = (value > 0)[:, None]
        lower, upper = torch.where(outside, eta, lower), torch.where(outside, upper, eta)
    dual = (x - x0).square().sum(1) + 2 * eta[:, 0] * value
    settled = (eta * gradient + x - x0).norm(dim=1) < 1e-5
    return torch.where(settled, dual.clamp(min=0).sqrt(), 0.0)


def _margin(network: Network, x: Tensor, label: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    logits = network(x)
    rows = torch.arange(len(x))
    value = logits[rows, label] - logits[rows, target]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _power(matrix: Tensor, weights: Tensor) -> Tensor:
    """Estimates (n, 1) of the largest eigenvalue of W^T diag(weights) W for each row of weights."""
    v = torch.ones(len(weights), matrix.shape[1])
    length = v.norm(dim=1, keepdim=True)
    for _ in range(POWER):
        v = ((v / length) @ matrix.T * weights) @ matrix
        length = v.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return length
