"""Proved curvature of every margin: numbers m[y, t] with `Hess (z_y - z_t)(x) >= -m[y, t] I`.

With B_I the Jacobian of z_I in the input and F_I the gradient of the margin in a_I = s(z_I),

    Hess f = sum_{I=1}^{L-1} B_I^T diag(F_I * s''(z_I)) B_I                      (paper, section 3).

F_I is bounded elementwise, which gives weights p_I >= -F_I * s'' and for each term the bound
`lambda_max(B_I^T diag(p_I) B_I)`. For the Jacobian the slopes are split into their midpoint and a
remainder, `D = mid + dev S` with |S| <= 1, so that products of weight matrices appear whose norm is
far below the product of the norms (averaged operators, Combettes & Pesquet 2020):

    |A D_{k-1} W_{k-1} ... W_1| <= mid^(k-1) |A W_{k-1} ... W_1|
                                   + sum_j mid^(k-1-j) dev |A W_{k-1} ... W_{j+1}| Lip(z_j).

Every sum below is computed in float64 and multiplied by `SLACK`, which far exceeds its rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import Activation
from raycrt.bounds.norms import norms
from raycrt.bounds.spectral import SLACK, weighted_gram_upper
from raycrt.networks.affine import DENSE_ENTRIES, AffineMap
from raycrt.networks.network import Network

# Gradients with a smaller largest entry prove nothing.
_SMALLEST = 1e-140


@dataclass(frozen=True, kw_only=True)
class LayerBounds:
    """Proved bounds on a network's norms, shared by all margins; layers are counted from 0.

    `layers` are the float64 maps. `products[k][j]` is the computed W_k ... W_j, where it is
    small enough to be formed, and `rounding[k][j]` bounds its distance from the exact product.
    `norms[k]` >= |W_k|, `lipschitz[k]` >= the Lipschitz constant of z_k in the input, and
    `quadratic[k]` >= |diag(|w_i|) W_k| Lip(a_{k-1})^2. Slopes are `middle` plus or minus
    `deviation`.
    """

    layers: list[AffineMap]
    products: list[list[Tensor | None]]
    rounding: list[list[float]]
    norms: list[float]
    quadratic: list[float]
    lipschitz: list[float]
    middle: float
    deviation: float

    def through(self, weights: Tensor, k: int) -> float:
        """A number >= `|diag(weights)^(1/2) B|` for the Jacobian B of z_k; weights >= 0."""
        largest = math.sqrt(float(weights.max()))
        spectral = []
        for j in range(k + 1):
            product = self.products[k][j]
            if product is None:
                root = math.sqrt(norms(self.layers[k]).gram_upper(weights)) * math.prod(
                    self.norms[j:k]
                )
            else:
                root = math.sqrt(weighted_gram_upper(product, weights))
                root += largest * self.rounding[k][j]
            spectral.append(root)
        total = self.middle**k * spectral[0]
        for j in range(k):
            path = self.middle ** (k - 1 - j) * self.deviation
            total += path * spectral[j + 1] * self.lipschitz[j]
        return total * SLACK


def layer_bounds(network: Network) -> LayerBounds:
    """The proved norm bounds that all margins share."""
    network = network.in_float64()
    low, high = network.activation.slope_range
    bounds = LayerBounds(
        layers=network.layers,
        products=[],
        rounding=[],
        norms=[],
        quadratic=[],
        lipschitz=[],
        middle=abs(low + high) / 2,
        deviation=(high - low) / 2 * SLACK,
    )
    for k, layer in enumerate(network.layers):
        row, rounding = _products(network.layers[: k + 1])
        bounds.products.append(row)
        bounds.rounding.append(rounding)
        bounds.norms.append(norms(layer).norm_upper())
        ones = torch.ones(layer.out_features, dtype=torch.float64, device=layer.offset().device)
        bounds.lipschitz.append(bounds.through(ones, k))
        squares = norms(layer).row_norms_upper().square() * SLACK
        before = bounds.lipschitz[k - 1] * (bounds.middle + bounds.deviation) if k else 1.0
        bounds.quadratic.append(
            math.sqrt(norms(layer).gram_upper(squares)) * before * before * SLACK
        )
    return bounds


def _products(layers: list[AffineMap]) -> tuple[list[Tensor | None], list[float]]:
    """W_k ... W_j for j = 0 ... k where it can be formed, and bounds on their rounding.

    A product of factors with errors e_i has an error of at most
    `sum_i e_i prod_{j != i} (|W_j|_F + e_j)`, and each multiplication rounds by gamma.
    """
    last = layers[-1]
    row: list[Tensor | None] = [last.matrix() if last.dense else None]
    rounding = [norms(last).matrix_error_upper()]
    sizes = [norms(last).magnitude_upper() + rounding[0]]
    errors = [rounding[0] / sizes[0] if sizes[0] else 0.0]
    steps = 0
    for layer in reversed(layers[:-1]):
        after = row[0]
        small = last.out_features * layer.in_features <= DENSE_ENTRIES
        row.insert(
            0, after @ layer.matrix() if after is not None and layer.dense and small else None
        )
        error = norms(layer).matrix_error_upper()
        sizes.append(norms(layer).magnitude_upper() + error)
        errors.append(error / sizes[-1] if sizes[-1] else 0.0)
        steps += layer.out_features + 2
        rounding.insert(0, (sum(errors) + 2 * steps * 2.0**-52) * math.prod(sizes) * SLACK)
    return row, rounding


def pair_upper(network: Network, bounds: LayerBounds, y: int, t: int) -> float:
    """A number m >= 0 with `Hess (z_y - z_t) >= -m I` everywhere; infinite where none is proved."""
    return readout_upper(network, bounds, *readout_interval(bounds.layers[-1], y, t))


def readout_upper(network: Network, bounds: LayerBounds, low: Tensor, high: Tensor) -> float:
    """A number m >= 0 with `Hess (v^T h) >= -m I` everywhere for the last hidden layer h and every
    v in [low, high]; infinite where none is proved."""
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        return math.inf
    length = float(torch.linalg.vector_norm(torch.maximum(low.abs(), high.abs()))) * SLACK
    total = 0.0
    for layer in range(network.depth - 2, -1, -1):
        # Norms of smaller vectors, and intermediate results, may have underflowed.
        if 0 < float(torch.maximum(low.abs(), high.abs()).max()) < _SMALLEST:
            return math.inf
        weights = curvature_weights(low, high, network.activation)
        total += _term(bounds, layer, weights, network.activation.curvature_bound * length)
        if layer > 0:
            low, high, length = _gradient_interval(
                bounds.layers[layer],
                bounds.norms[layer],
                network.activation.slope_range,
                low,
                high,
                length,
            )
    total *= SLACK
    return total if math.isfinite(total) else math.inf


def readout_interval(last: AffineMap, y: int, t: int) -> tuple[Tensor, Tensor]:
    """Bounds on the exact difference of rows y and t of the last matrix."""
    matrix = last.matrix()
    direction = matrix[y] - matrix[t]
    slack = direction.abs() * 2.0**-50 + 2 * norms(last).matrix_error_upper()
    return direction - slack, direction + slack


def curvature_weights(low: Tensor, high: Tensor, activation: Activation) -> Tensor:
    """The smallest p >= 0 with `F s'' >= -p` for every F in [low, high] and every s'', rounded up;
    the signs of F and s'' are taken into account."""
    least, most = activation.curvature_range
    ends = [-most * low, -least * low, -most * high, -least * high]
    return torch.stack(ends).amax(0).clamp(min=0) * SLACK


def _term(bounds: LayerBounds, layer: int, weights: Tensor, curvature: float) -> float:
    """A number >= `lambda_max(B^T diag(weights) B)` for the Jacobian B of z_layer.

    `curvature` >= |F|_2 sup|s''| gives a second bound, `curvature |diag(|w_i|) W| Lip^2` (Entesari
    et al., ICML 2024); the smaller of both is returned.
    """
    through = bounds.through(weights, layer)
    interval = through * through
    if layer == 0:
        return interval
    return min(interval, curvature * bounds.quadratic[layer] * SLACK)


def _gradient_interval(
    layer: AffineMap,
    norm: float,
    slopes: tuple[float, float],
    low: Tensor,
    high: Tensor,
    length: float,
) -> tuple[Tensor, Tensor, float]:
    """Bounds on W^T (s' * F) from bounds on F, elementwise and in the 2-norm."""
    ends = torch.stack([slopes[0] * low, slopes[0] * high, slopes[1] * low, slopes[1] * high])
    g_low, g_high = ends.amin(0), ends.amax(0)
    slope = max(abs(s) for s in slopes)
    reach = torch.maximum(g_low.abs(), g_high.abs())
    slack = layer.transpose_absolute(reach) * (SLACK - 1)
    slack += norms(layer).matrix_error_upper() * float(reach.norm()) * SLACK
    new_low, new_high = layer.transpose_interval(g_low, g_high)
    cauchy = norms(layer).column_norms_upper() * slope * length * SLACK
    new_low = torch.maximum(new_low - slack, -cauchy)
    new_high = torch.minimum(new_high + slack, cauchy)
    widest = float(torch.linalg.vector_norm(torch.maximum(new_low.abs(), new_high.abs())))
    return new_low, new_high, min(norm * slope * length, widest) * SLACK
