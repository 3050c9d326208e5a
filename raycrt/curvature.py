"""Proved curvature of every margin: numbers m[y, t] with `Hess (z_y - z_t)(x) >= -m[y, t] I`.

With B_I the Jacobian of z_I in the input and F_I the gradient of the margin in a_I = s(z_I),

    Hess f = sum_{I=1}^{L-1} B_I^T diag(F_I * s''(z_I)) B_I                      (paper, section 3).

F_I is bounded elementwise, which gives weights p_I >= -F_I * s'' and the bound of a term
`lambda_max(B_I^T diag(p_I) B_I)`. For the Jacobian the slopes are split into their midpoint and a
remainder, `D = mid + dev S` with |S| <= 1, so that products of weight matrices appear whose norm is
far below the product of the norms (averaged operators, Combettes & Pesquet 2020):

    |A D_{k-1} W_{k-1} ... W_1| <= mid^(k-1) |A W_{k-1} ... W_1|
                                   + sum_j mid^(k-1-j) dev |A W_{k-1} ... W_{j+1}| Lip(z_j).

Every sum below is taken in float64 and multiplied by `_SLACK`, far above its rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.network import Network
from raycrt.spectral import norm_upper, weighted_gram_upper

_SLACK = 1 + 1e-12


@dataclass(frozen=True, kw_only=True)
class LayerBounds:
    """Proved norms of a network, the same for every margin.

    `products[k][j]` = W_k ... W_j (float64, k >= j, counted from 0), `norms[k]` >= |W_k|,
    `lipschitz[k]` >= Lipschitz constant of z_k in the input.
    """

    products: list[list[Tensor]]
    norms: list[float]
    lipschitz: list[float]
    middle: float
    deviation: float


def layer_bounds(network: Network) -> LayerBounds:
    """The proved norms that the bounds of all margins share."""
    matrices = [layer.matrix().detach().double() for layer in network.layers]
    low, high = network.activation.slope_range
    middle, deviation = (low + high) / 2, (high - low) / 2 * _SLACK
    products: list[list[Tensor]] = []
    lipschitz: list[float] = []
    norms: list[float] = []
    for k, matrix in enumerate(matrices):
        row = [matrix]
        for j in range(k - 1, -1, -1):
            row.insert(0, row[0] @ matrices[j])
        products.append(row)
        spectral = [_product_norm(row[j], matrices[j : k + 1]) for j in range(k + 1)]
        norms.append(spectral[k])
        lipschitz.append(_through(spectral, lipschitz, middle, deviation))
    return LayerBounds(
        products=products,
        norms=norms,
        lipschitz=lipschitz,
        middle=middle,
        deviation=deviation,
    )


def _product_norm(product: Tensor, factors: list[Tensor]) -> float:
    """A bound of the norm of the exact product, of which `product` is the rounded value."""
    return norm_upper(product) + _product_rounding(factors)


def _product_rounding(factors: list[Tensor]) -> float:
    """A bound of |fl(W_k ... W_j) - W_k ... W_j|: Frobenius norms, times gamma for each product."""
    if len(factors) == 1:
        return 0.0
    size = math.prod(float(torch.linalg.matrix_norm(f)) for f in factors)
    steps = sum(max(f.shape) + 2 for f in factors)
    return 2 * steps * 2.0**-52 * size


def _through(spectral: list[float], lipschitz: list[float], middle: float, dev: float) -> float:
    """Bound of |A D ... W_1| from |A W ... W_j| in `spectral[j]` and Lip(z_j) in `lipschitz`."""
    k = len(spectral) - 1
    total = middle**k * spectral[0]
    for j in range(k):
        total += middle ** (k - 1 - j) * dev * spectral[j + 1] * lipschitz[j]
    return total * _SLACK


def margin_curvature(network: Network) -> Tensor:
    """m (classes, classes), float64: `Hess (z_y - z_t) >= -m[y, t] I` everywhere, 0 if y == t.

    Holds for the network with the stored weights in exact arithmetic. Infinite where the weights
    are not finite. Cost: a few eigenproblems of the smaller layer size for each ordered pair.
    """
    bounds = layer_bounds(network)
    classes = network.classes
    m = torch.zeros(classes, classes, dtype=torch.float64)
    for y in range(classes):
        for t in range(classes):
            if y != t:
                m[y, t] = _margin_bound(network, bounds, y, t)
    return m


def _margin_bound(network: Network, bounds: LayerBounds, y: int, t: int) -> float:
    last = bounds.products[-1][-1]
    direction = last[y] - last[t]
    if not torch.isfinite(direction).all():
        return math.inf
    low, high = network.activation.slope_range
    bend_low, bend_high = network.activation.curvature_range
    slack = direction.abs() * 2.0**-50
    f_low, f_high = direction - slack, direction + slack
    f_norm = float(torch.linalg.vector_norm(f_high.abs().maximum(f_low.abs()))) * _SLACK
    total = 0.0
    for layer in range(network.depth - 2, -1, -1):
        weights = torch.maximum(
            torch.maximum(-bend_high * f_low, -bend_low * f_high),
            torch.maximum(-bend_high * f_high, -bend_low * f_low),
        ).clamp(min=0)
        total += _term(bounds, layer, weights * _SLACK, network.activation.curvature_bound * f_norm)
        if layer > 0:
            matrix = bounds.products[layer][layer]
            f_low, f_high, f_norm = _gradient_interval(
                matrix, bounds.norms[layer], (low, high), f_low, f_high, f_norm
            )
    return total * _SLACK


def _term(bounds: LayerBounds, layer: int, weights: Tensor, bend: float) -> float:
    """Bound of `lambda_max(B^T diag(weights) B)` for the Jacobian B of z_layer.

    `bend` >= |F|_2 sup|s''| gives a second bound, `bend |diag(|w_i|) W| Lip^2` (Entesari et al.,
    ICML 2024); the smaller holds.
    """
    factors = [bounds.products[i][i] for i in range(layer + 1)]
    spectral = []
    for j in range(layer + 1):
        rounding = math.sqrt(float(weights.max())) * _product_rounding(factors[j:])
        root = math.sqrt(weighted_gram_upper(bounds.products[layer][j], weights))
        spectral.append(root + rounding)
    interval = _through(spectral, bounds.lipschitz, bounds.middle, bounds.deviation) ** 2
    if layer == 0:
        return interval
    matrix = factors[layer]
    rows = torch.linalg.vector_norm(matrix, dim=1)
    before = bounds.lipschitz[layer - 1] * (bounds.middle + bounds.deviation)
    compositional = bend * norm_upper(rows[:, None] * matrix) * before**2 * _SLACK
    return min(interval, compositional)


def _gradient_interval(
    matrix: Tensor,
    norm: float,
    slopes: tuple[float, float],
    low: Tensor,
    high: Tensor,
    euclidean: float,
) -> tuple[Tensor, Tensor, float]:
    """Bounds of W^T (s' * F) from bounds of F, elementwise and in the 2-norm."""
    ends = torch.stack([slopes[0] * low, slopes[0] * high, slopes[1] * low, slopes[1] * high])
    g_low, g_high = ends.amin(0), ends.amax(0)
    up, down = matrix.clamp(min=0), matrix.clamp(max=0)
    slack = matrix.abs().T @ torch.maximum(g_low.abs(), g_high.abs()) * (_SLACK - 1)
    new_low = up.T @ g_low + down.T @ g_high - slack
    new_high = up.T @ g_high + down.T @ g_low + slack
    slope = max(abs(s) for s in slopes)
    cauchy = torch.linalg.vector_norm(matrix, dim=0) * slope * euclidean * _SLACK
    new_low, new_high = torch.maximum(new_low, -cauchy), torch.minimum(new_high, cauchy)
    widest = float(torch.linalg.vector_norm(torch.maximum(new_low.abs(), new_high.abs())))
    return new_low, new_high, min(norm * slope * euclidean, widest) * _SLACK
