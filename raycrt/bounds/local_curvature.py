"""Proved curvature of margins on a ball: `Hess f(x) >= -m I` for every x with |x - x0|_2 <= R.

On the ball the argument of each neuron stays in an interval, on which its slopes lie in `M +- dev`
and its curvatures in a known range (Singla & Feizi 2020 mention local bounds in the abstract).
With J_k the Jacobian of z_k and C_kj = W_k M_{k-1} W_{k-1} ... M_j W_j,

    J_k = C_k0 + E_k,   E_k = sum_{j<k} C_k,j+1 (D_j - M_j) J_j,   |D_j - M_j| <= dev_j,

which bounds the rows of J_k, hence the intervals of z_k, layer by layer. From the second layer on
they are intersected with those of the layers' enclosures (`raycrt.bounds.enclosure`), which are
shorter the deeper the layer. The gradient F_k of the margin in s(z_k) is bounded by interval
arithmetic, which gives signed weights p_k >= -F_k s''(z_k). At k = 0, where J_0 = W_0, negative
weights cancel exactly; at k > 0 they are set to 0.
With A_k = p_k^(1/2) and e_k >= |A_k E_k|,

    m = lambda_max(sum_k C_k0^T diag(p_k) C_k0) + sum_k (2 |A_k C_k0| e_k + e_k^2),

one eigenvalue for all layers; with two layers no e_k remains. All sums are computed in float64, and
bounds on the rounding of every product are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.enclosure import Layer, NetworkEnclosure, leading_directions
from raycrt.bounds.layers.norms import formed, norms
from raycrt.bounds.rounding import RoundingErrors
from raycrt.bounds.spectral import (
    EPS,
    SLACK,
    cholesky_upper,
    eigenvalue_upper,
    gamma,
    gram_iteration_upper,
)
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity

# Room for the rounding of a checker that proves the same bound in another order.
_ROOM = 1 + 1e-8
# Number of products in a norm bound, which is then at most a factor n^(1/128) too large.
_PRODUCTS = 6
# Matrix entries, over all targets, that are processed at a time: 2^23 float64 take 64 MB.
_AT_ONCE = 2**23


@dataclass(frozen=True, kw_only=True)
class LocalCurvature:
    """Curvature bounds on balls, from float64 matrices and error bounds shared by all balls."""

    network: Network
    matrices: list[Tensor]
    matrix_errors: list[float]
    sizes: list[float]
    first_norm: float
    errors: RoundingErrors
    enclosure: NetworkEnclosure | None

    @staticmethod
    def of(network: Network, errors: RoundingErrors) -> LocalCurvature:
        """Raises `InvalidInput` if the matrix of a layer is too large to be formed."""
        network = network.in_float64()
        enclosure = NetworkEnclosure.of(network) if network.depth > 2 else None
        matrices, matrix_errors = (
            (enclosure.matrices, enclosure.matrix_errors)
            if enclosure is not None
            else formed(network.layers)
        )
        return LocalCurvature(
            network=network,
            matrices=matrices,
            matrix_errors=matrix_errors,
            sizes=[_frobenius(w) + e for w, e in zip(matrices, matrix_errors, strict=True)],
            first_norm=norms(network.layers[0]).norm_upper(),
            errors=errors,
            enclosure=enclosure,
        )

    def __call__(
        self,
        x: Tensor,
        radius: float,
        label: int,
        targets: Tensor,
        *,
        enough: Tensor | None = None,
    ) -> Tensor:
        """m (k,) of the margins `label` against `targets` (k,) on the ball around x (features,).

        Where `enough` (k,) is given and one factorisation proves it, `enough` itself is returned,
        as a decision needs no more. Infinite where nothing can be proved.
        """
        ball = self._ball(x, radius)
        weights = self._weights(ball, label, targets)
        jacobian = torch.cat([chain[0] for chain in ball.chains])
        found = torch.empty(len(targets), dtype=torch.float64)
        targets_at_once = max(1, _AT_ONCE // max(matrix.numel() for matrix in self.matrices))
        parts = zip(*(p.split(targets_at_once) for p in weights), strict=True)
        extras = torch.cat([_corrections(ball, part) for part in parts])
        for i, extra in enumerate(extras.tolist()):
            wanted = None if enough is None else float(enough[i]) / _ROOM - extra
            p = torch.cat([layer[i] for layer in weights])
            found[i] = (_signed_gram_upper(jacobian, p, wanted) + extra) * _ROOM
        if enough is not None:
            enough = enough.to(found)
            found = torch.where((found - enough).abs() <= 1e-12 * enough.abs(), enough, found)
        return found.nan_to_num(nan=math.inf).to(x.device)

    def _ball(self, x: Tensor, radius: float) -> _Ball:
        """Ranges and Jacobians on the ball, layer by layer."""
        length = (x.norm() * SLACK + 1e-150)[None]
        errors = [error for error, _ in self.errors.layers(length, torch.float64)]
        ball = _Ball(layers=[], chains=[], rounding=[])
        enclosed = self._enclosed(x, radius)
        z = self.network.layers[0](x)
        for k, matrix in enumerate(self.matrices[:-1]):
            chain, rounding = self._chain(ball, k)
            rows = torch.linalg.vector_norm(chain[0], dim=1) + rounding
            norm = self.first_norm if k == 0 else float(_norms_upper(chain[0])) + rounding
            for j, layer in enumerate(ball.layers):
                moved = chain[j + 1] * layer.deviation
                rows = rows + torch.linalg.vector_norm(moved, dim=1) * layer.lipschitz
                norm += float(_norms_upper(moved)) * layer.lipschitz
            if k > 0:
                before = ball.layers[-1]
                scaled = torch.linalg.vector_norm(matrix * before.steepest, dim=1) * SLACK
                error = self.matrix_errors[k] * float(before.steepest.max())
                rows = torch.minimum(rows, (scaled + error) * before.lipschitz)
                z = self.network.layers[k](self.network.nonlinearities[k - 1].value(z))
            half = (radius * rows + errors[k]) * SLACK + 4 * EPS * z.abs()
            low, high = z - half, z + half
            if k > 0:
                centre = enclosed[k].centre
                edge = enclosed[k].spread * SLACK + 4 * EPS * centre.abs()
                # Where an enclosure overflowed, the other interval counts.
                low, high = torch.fmax(low, centre - edge), torch.fmin(high, centre + edge)
            nonlinearity = self.network.nonlinearities[k]
            ball.layers.append(_layer(nonlinearity, low, high, norm * SLACK))
            ball.chains.append(chain)
            ball.rounding.append(rounding)
        return ball

    def _enclosed(self, x: Tensor, radius: float) -> list[Layer]:
        """The enclosures of the layers on the ball, where there is more than one."""
        if self.enclosure is None:
            return []
        *hidden, _ = self.enclosure.jacobians(x)
        layers, _ = self.enclosure.layers(x, radius, leading_directions(torch.cat(hidden)))
        return layers

    def _chain(self, ball: _Ball, k: int) -> tuple[list[Tensor], float]:
        """C_kj for j = 0 ... k, and an upper bound on what their errors add to the bound on |E_k|.

        An error of C_k0 adds directly, an error of C_k,j+1 times `deviation` and |J_j|.
        """
        chain, error = [self.matrices[k]], self.matrix_errors[k]
        added = 0.0
        for j in range(k - 1, -1, -1):
            layer = ball.layers[j]
            added += error * float(layer.deviation.max()) * layer.lipschitz
            scaled = chain[0] * layer.middle
            rounding = gamma(len(self.matrices[j]) + 4) * self.sizes[j] + self.matrix_errors[j]
            error = error * float(layer.steepest.max()) * self.sizes[j]
            error = (error + _frobenius(scaled) * rounding) * SLACK
            chain.insert(0, scaled @ self.matrices[j])
        return chain, (added + error) * SLACK

    def _weights(self, ball: _Ball, label: int, targets: Tensor) -> list[Tensor]:
        """p_k (targets, neurons) for each layer; only those of the first may be negative."""
        direction = self.matrices[-1][label] - self.matrices[-1][targets]
        slack = direction.abs() * (4 * EPS) + 2 * self.matrix_errors[-1]
        low, high = direction - slack, direction + slack
        length = _lengths(low, high)
        found: list[Tensor] = []
        for k in range(len(ball.layers) - 1, -1, -1):
            layer = ball.layers[k]
            p = _products(-high, -low, layer.curvature_low, layer.curvature_high)[1]
            p = p + p.abs() * (4 * EPS)
            found.insert(0, p if k == 0 else p.clamp(min=0))
            if k > 0:
                low, high, length = self._pull(k, layer, low, high, length)
        return found

    def _pull(
        self, k: int, layer: _Layer, low: Tensor, high: Tensor, length: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds on F_{k-1} = W_k^T (s'(z_k) * F_k), elementwise and in the 2-norm."""
        matrix, error = self.matrices[k], self.matrix_errors[k]
        low, high = _products(low, high, layer.slope_low, layer.slope_high)
        size = torch.maximum(low.abs(), high.abs())
        reach = ((high - low) / 2) @ matrix.abs()
        rounding = size @ matrix.abs() * (2 * gamma(len(matrix) + 8))
        rounding = rounding + error * _lengths(low, high)[:, None]
        middle = ((low + high) / 2) @ matrix
        scaled = matrix * layer.steepest[:, None]
        drift = error * float(layer.steepest.max())
        columns = torch.linalg.vector_norm(scaled, dim=0) * SLACK + drift
        cauchy = columns * length[:, None] * SLACK
        low = torch.maximum(middle - reach - rounding, -cauchy)
        high = torch.minimum(middle + reach + rounding, cauchy)
        norm = float(_norms_upper(scaled)) + drift
        return low, high, torch.minimum(norm * length * SLACK, _lengths(low, high))


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A hidden layer on the ball: ranges of each neuron's slope and curvature; |J_k| <= lipschitz.

    Slopes are `middle` plus or minus `deviation` and at most `steepest` in size.
    """

    slope_low: Tensor
    slope_high: Tensor
    middle: Tensor
    deviation: Tensor
    steepest: Tensor
    curvature_low: Tensor
    curvature_high: Tensor
    lipschitz: float


@dataclass(frozen=True, kw_only=True)
class _Ball:
    """`chains[k][j]` is the computed C_kj; `rounding[k]` is what errors add to the |E_k| bound."""

    layers: list[_Layer]
    chains: list[list[Tensor]]
    rounding: list[float]


def _layer(nonlinearity: Nonlinearity, low: Tensor, high: Tensor, lipschitz: float) -> _Layer:
    slope_low, slope_high = nonlinearity.slope_ends_on(low, high)
    curvature_low, curvature_high = nonlinearity.curvature_ends_on(low, high)
    middle = (slope_low + slope_high) / 2
    return _Layer(
        slope_low=slope_low,
        slope_high=slope_high,
        middle=middle,
        deviation=torch.maximum(slope_high - middle, middle - slope_low) * SLACK,
        steepest=torch.maximum(slope_low.abs(), slope_high.abs()),
        curvature_low=curvature_low,
        curvature_high=curvature_high,
        lipschitz=lipschitz,
    )


def _corrections(ball: _Ball, weights: Sequence[Tensor]) -> Tensor:
    """sum_k (2 |A_k C_k0| e_k + e_k^2) for each target."""
    total = torch.zeros_like(weights[0][:, 0])
    for k, p in enumerate(weights):
        root = p.abs().sqrt()
        shift = root.amax(1) * ball.rounding[k]
        for j, layer in enumerate(ball.layers[:k]):
            moved = root[:, :, None] * (ball.chains[k][j + 1] * layer.deviation)
            shift = shift + _norms_upper(moved) * layer.lipschitz
        if bool((shift > 0).any()):
            main = _norms_upper(root[:, :, None] * ball.chains[k][0])
            total = total + 2 * main * shift + shift.square()
    return total * SLACK


def _products(
    low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor
) -> tuple[Tensor, Tensor]:
    """Elementwise range of a b over a in [low, high], b in [other_low, other_high]."""
    ends = torch.stack([low * other_low, low * other_high, high * other_low, high * other_high])
    return ends.amin(0), ends.amax(0)


def _lengths(low: Tensor, high: Tensor) -> Tensor:
    """Upper bounds (k,) on the 2-norms of all rows between `low` and `high` (k, n)."""
    return torch.linalg.vector_norm(torch.maximum(low.abs(), high.abs()), dim=1) * SLACK


def _frobenius(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix)) * SLACK


def _norms_upper(matrices: Tensor) -> Tensor:
    """Numbers >= the spectral norms of matrices (..., rows, columns)."""
    return gram_iteration_upper(matrices, _PRODUCTS)


def _signed_gram_upper(matrix: Tensor, weights: Tensor, enough: float | None) -> float:
    """A number >= lambda_max(W^T diag(weights) W) and >= 0, for weights of any sign.

    Returns `enough` itself if one factorisation proves it, else a bound close to the eigenvalue.
    """
    if not (torch.isfinite(matrix).all() and torch.isfinite(weights).all()):
        return math.inf
    mass = float((weights.abs() * matrix.square().sum(1)).sum()) * SLACK
    if not math.isfinite(mass):
        return math.inf
    rounding = gamma(sum(matrix.shape) + 6) * mass
    positive = len(matrix) < matrix.shape[1] and bool((weights >= 0).all())
    if positive:
        root = weights.sqrt()[:, None] * matrix
        gram = root @ root.T
    else:
        gram = matrix.T @ (weights[:, None] * matrix)
    if enough is not None and enough > 0:
        # Aim slightly lower: the error terms that the proof adds must fit below `enough`.
        spare = rounding + 4 * gamma(len(gram) + 1) * (len(gram) * enough + mass)
        proved = cholesky_upper(gram, enough - spare)
        if proved is not None and proved + rounding <= enough:
            return enough
    return max(0.0, (eigenvalue_upper(gram) + rounding) * (1 + EPS))
