"""Proved curvature of every margin: numbers m[y, t] with `Hess (z_y - z_t)(x) >= -m[y, t] I`.

With B_I the Jacobian of z_I in the input and F_I the gradient of the margin in a_I = s(z_I),

    Hess f = sum_{I=1}^{L-1} B_I^T diag(F_I * s''(z_I)) B_I                      (paper, section 3).

F_I is bounded elementwise, which gives weights p_I >= -F_I * s'' and for each term the bound
`lambda_max(B_I^T diag(p_I) B_I)`. For the Jacobian the slopes are split into their midpoint and a
remainder, `D = mid + dev S` with |S| <= 1, so that products of weight matrices appear whose norm is
far below the product of the norms (averaged operators, Combettes & Pesquet 2020):

    |A B_k| <= |A C_k0| + sum_j dev |A C_k,j+1| Lip(z_j),    C_kj = W_k mid W_{k-1} ... mid W_j.

A feature that is passed on has mid = 1, dev = 0 and no curvature: only the columns of C_k,j+1 and
the rows of z_j that an activation acts on count.

Every sum below is computed in float64 and multiplied by `SLACK`, which far exceeds its rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.layers.norms import norms
from raycrt.bounds.spectral import SLACK, weighted_gram_upper
from raycrt.networks.layers.affine import DENSE_ENTRIES, AffineMap, Chain
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity

# Gradients with a smaller largest entry prove nothing.
_SMALLEST = 1e-140


@dataclass(frozen=True, kw_only=True)
class LayerBounds:
    """Proved bounds on a network's norms, shared by all margins; layers are counted from 0.

    `layers` and `nonlinearities` are those of the network in float64. `products[k][j]` is the
    computed C_kj, where it is small enough to be formed, and `rounding[k][j]` bounds its distance
    from the exact product. `norms[k]` >= |W_k|, `lipschitz[k]` >= the Lipschitz constant of z_k in
    the input and `acted[k]` of those of its features that an activation acts on. `quadratic[k]` >=
    |diag(|w_i|) W_k| Lip(h_{k-1})^2 over these features.
    """

    layers: list[AffineMap]
    nonlinearities: tuple[Nonlinearity, ...]
    products: list[list[Tensor | None]]
    rounding: list[list[float]]
    norms: list[float]
    quadratic: list[float]
    lipschitz: list[float]
    acted: list[float]

    def through(self, weights: Tensor, k: int) -> float:
        """A number >= `|diag(weights)^(1/2) J|` for the Jacobian J of z_k; weights >= 0."""
        total = self._spectral(weights, k, 0)
        for j in range(k):
            before = self.nonlinearities[j]
            deviation = _deviation(before) * self._spectral(weights, k, j + 1, before.active)
            total += deviation * self.acted[j]
        return total * SLACK

    def _spectral(self, weights: Tensor, k: int, j: int, columns: int | None = None) -> float:
        """A number >= `|diag(weights)^(1/2) C_kj|`, of its first `columns` if given."""
        product = self.products[k][j]
        if product is None:
            factor = [_middle_bound(each) for each in self.nonlinearities[j:k]]
            return math.sqrt(norms(self.layers[k]).gram_upper(weights)) * math.prod(
                [*self.norms[j:k], *factor]
            )
        largest = math.sqrt(float(weights.max()))
        root = math.sqrt(weighted_gram_upper(product[:, :columns], weights))
        return root + largest * self.rounding[k][j]


def layer_bounds(network: Network) -> LayerBounds:
    """The proved norm bounds that all margins share."""
    network = network.in_float64()
    bounds = LayerBounds(
        layers=network.layers,
        nonlinearities=network.nonlinearities,
        products=[],
        rounding=[],
        norms=[],
        quadratic=[],
        lipschitz=[],
        acted=[],
    )
    for k, layer in enumerate(network.layers[:-1]):
        row, rounding = _products(network.layers[: k + 1], network.nonlinearities[:k])
        bounds.products.append(row)
        bounds.rounding.append(rounding)
        bounds.norms.append(norms(layer).norm_upper())
        nonlinearity = network.nonlinearities[k]
        acts = nonlinearity.acts(layer.offset())
        bounds.lipschitz.append(bounds.through(torch.ones_like(acts), k))
        bounds.acted.append(bounds.through(acts, k) if nonlinearity.passes else bounds.lipschitz[k])
        squares = norms(layer).row_norms_upper().square() * acts * SLACK
        before = bounds.lipschitz[k - 1] * network.nonlinearities[k - 1].slope_bound if k else 1.0
        bounds.quadratic.append(
            math.sqrt(norms(layer).gram_upper(squares)) * before * before * SLACK
        )
    return bounds


def _middle_bound(nonlinearity: Nonlinearity) -> float:
    """The largest midpoint of a feature's slopes, in size."""
    own = abs(sum(nonlinearity.activation.slope_range)) / 2
    return max(own, 1.0) if nonlinearity.passes else own


def _deviation(nonlinearity: Nonlinearity) -> float:
    """An upper bound on the distance of an activation's slopes from their midpoint."""
    low, high = nonlinearity.activation.slope_range
    return (high - low) / 2 * SLACK


def _products(
    layers: list[AffineMap], nonlinearities: Sequence[Nonlinearity]
) -> tuple[list[Tensor | None], list[float]]:
    """C_kj for j = 0 ... k where it can be formed, and bounds on their rounding.

    A product of factors with errors e_i has an error of at most
    `sum_i e_i prod_{j != i} (|W_j|_F + e_j)`, and each multiplication rounds by gamma.
    """
    last = layers[-1]
    row: list[Tensor | None] = [last.matrix() if last.dense else None]
    rounding = [norms(last).matrix_error_upper()]
    sizes = [norms(last).magnitude_upper() + rounding[0]]
    errors = [rounding[0] / sizes[0] if sizes[0] else 0.0]
    steps = 0
    for layer, nonlinearity in zip(reversed(layers[:-1]), reversed(nonlinearities), strict=True):
        after = row[0]
        small = last.out_features * layer.in_features <= DENSE_ENTRIES
        product = None
        if after is not None and layer.dense and small:
            low, high = nonlinearity.slope_ends(after)
            product = (after * ((low + high) / 2)) @ layer.matrix()
        row.insert(0, product)
        error = norms(layer).matrix_error_upper()
        sizes.append((norms(layer).magnitude_upper() + error) * _middle_bound(nonlinearity))
        errors.append(error / sizes[-1] * _middle_bound(nonlinearity) if sizes[-1] else 0.0)
        steps += layer.out_features + 4
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
    total, reached = 0.0, (low != 0) | (high != 0)
    for layer in range(network.depth - 2, -1, -1):
        nonlinearity = network.nonlinearities[layer]
        sizes = torch.maximum(low.abs(), high.abs())
        acted = sizes[: nonlinearity.active][reached[: nonlinearity.active]]
        # Norms of smaller vectors, intermediate results, and these numbers, may have underflowed.
        for part in (sizes[reached], acted):
            if len(part) > 0 and float(part.max()) < _SMALLEST:
                return math.inf
        weights = curvature_weights(low, high, nonlinearity)
        total += _term(bounds, layer, weights, nonlinearity.curvature_bound * length)
        if layer > 0:
            reached = _reached(bounds.layers[layer], reached)
            low, high, length = _gradient_interval(
                bounds.layers[layer],
                bounds.norms[layer],
                nonlinearity,
                low,
                high,
                length,
            )
    total *= SLACK
    return total if math.isfinite(total) else math.inf


def _reached(layer: AffineMap, given: Tensor) -> Tensor:
    """Mask (in_features,) of the features that the result's features `given` (out_features,) read
    with a weight other than 0."""
    for link in reversed(layer.links if isinstance(layer, Chain) else [layer]):
        given = link.transpose_absolute(given.double()) > 0
    return given


def readout_interval(last: AffineMap, y: int, t: int) -> tuple[Tensor, Tensor]:
    """Bounds on the exact difference of rows y and t of the last matrix."""
    matrix = last.matrix()
    direction = matrix[y] - matrix[t]
    slack = direction.abs() * 2.0**-50 + 2 * norms(last).matrix_error_upper()
    return direction - slack, direction + slack


def curvature_weights(low: Tensor, high: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """The smallest p >= 0 with `F s'' >= -p` for every F in [low, high] and every s'', rounded up;
    the signs of F and s'' are taken into account."""
    least, most = nonlinearity.curvature_ends(low)
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
    nonlinearity: Nonlinearity,
    low: Tensor,
    high: Tensor,
    length: float,
) -> tuple[Tensor, Tensor, float]:
    """Bounds on W^T (s' * F) from bounds on F, elementwise and in the 2-norm."""
    least, most = nonlinearity.slope_ends(low)
    ends = torch.stack([least * low, least * high, most * low, most * high])
    g_low, g_high = ends.amin(0), ends.amax(0)
    slope = nonlinearity.slope_bound
    reach = torch.maximum(g_low.abs(), g_high.abs())
    slack = layer.transpose_absolute(reach) * (SLACK - 1)
    slack += norms(layer).matrix_error_upper() * float(reach.norm()) * SLACK
    new_low, new_high = norms(layer).transpose_interval(g_low, g_high)
    cauchy = norms(layer).column_norms_upper() * slope * length * SLACK
    new_low = torch.maximum(new_low - slack, -cauchy)
    new_high = torch.minimum(new_high + slack, cauchy)
    widest = float(torch.linalg.vector_norm(torch.maximum(new_low.abs(), new_high.abs())))
    return new_low, new_high, min(norm * slope * length, widest) * SLACK
