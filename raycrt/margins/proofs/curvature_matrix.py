"""A low-rank-plus-identity upper bound P of a margin's negative Hessian.

With two layers, `Hess f >= -P` everywhere for `P = W_1^T diag(p) W_1`, with p from
`raycrt.bounds.global_curvature`; m is the largest eigenvalue of P. The leading eigenvectors V are
kept, as coordinates in a span:

    P <= V diag(d) V^T + rest I,    V^T V <= (1 + skew) I,

proved for the stored V by a Cholesky factorisation, however V was found. With
`s = lambda - b - rest` larger than every `d (1 + skew)`, Woodbury's identity gives

    h^T ((lambda - b) I - P)^-1 h <= (|h|^2 + sum_i (V^T h)_i^2 d_i / (s - d_i (1 + skew))) / s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raycrt.bounds.global_curvature import curvature_weights, readout_interval
from raycrt.bounds.spectral import EPS, SLACK, eigenvalue_upper, gamma
from raycrt.margins.first_layer import Space, Span
from raycrt.networks.network import Network

# Multipliers stay this far (relative) above the pole; the search extends to `_BEYOND` times the
# multiplier that the number m calls for.
_NEXT_TO, _BEYOND, _LEAST = 1e-6, 8, 1e-150
_BISECTIONS = 12


@dataclass(frozen=True, kw_only=True)
class MatrixAtPoints:
    """P for n margins at points u with gradients g, in float64.

    V^T g `of_gradient`, V^T u `of_point` and the `sizes` d (1 + skew) are (n, k), `rest` is (n,).
    """

    of_gradient: Tensor
    of_point: Tensor
    sizes: Tensor
    rest: Tensor

    @property
    def largest(self) -> Tensor:
        """Upper bounds (n,) on the largest eigenvalues."""
        return (self.sizes.amax(1) + self.rest) * (1 + 4 * EPS)

    def multiplier(
        self, value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """An estimate (n,) of the lambda that proves most, and the squared length there of
        `(lambda I - P)^-1 (g + lambda u)`, the step from the end of the ball to the point.

        Neither is proved. lambda is where the quadratic bound vanishes at the minimiser of its sum
        with `|d|^2 lambda / 2`, searched up to a few times `start` above the pole, or next to it.
        """
        a, b = self.of_gradient, self.of_point
        # Orthogonal to all directions the curvature is the rest.
        gg, gu, uu = (
            whole - (x * y).sum(1) for whole, x, y in ((gg, a, a), (gu, a, b), (uu, b, b))
        )
        gg, uu = gg.clamp(min=0), uu.clamp(min=0)
        floor, pole = self.rest, self.largest
        curved = self.sizes + floor[:, None]
        half = curved / 2
        low = (pole * _NEXT_TO).clamp(min=_LEAST).log()
        high = torch.maximum(low, (start * _BEYOND).clamp(min=_LEAST).log())

        def at(above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """lambda, y along the directions, 1 / (lambda - rest), and |h|^2 orthogonal to them."""
            lam = pole + above.exp()
            y = torch.addcmul(a, lam[:, None], b).div_(lam[:, None] - curved)
            return lam, y, 1 / (lam - floor), gg + 2 * lam * gu + lam * lam * uu

        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            lam, y, free, across = at(middle)
            within = value - torch.linalg.vecdot(y, torch.addcmul(a, half, y))
            positive = within > free * (gg + lam * gu + floor * free * across / 2)
            low, high = torch.where(positive, low, middle), torch.where(positive, middle, high)
        lam, y, free, across = at(high)
        return lam, torch.linalg.vecdot(y, y) + free * free * across.clamp(min=0)

    def spent(self, lam: Tensor, inflation: Tensor, hh: Tensor, error: Tensor) -> Tensor:
        """Upper bounds (n,) on `h^T ((lambda - inflation) I - P)^-1 h` for h = g + lambda u with
        |h|^2 <= `hh`, where the products of h with the directions have errors of at most `error`
        (n,); infinite beyond the pole."""
        left = (lam - inflation) * (1 - 2 * EPS) - self.rest
        left = left - 4 * EPS * (lam + self.rest)
        ahead = torch.addcmul(self.of_gradient, lam[:, None], self.of_point).abs_()
        ahead += error[:, None]
        room = left[:, None] - self.sizes
        # Form the quotient first: products of small curvatures and small gradients underflow.
        parts = (ahead * ahead * (self.sizes / room)).sum(1)
        spent = (hh + parts) / left * (1 + (self.sizes.shape[1] + 16) * EPS)
        return torch.where((room > 0).all(1), spent, torch.inf)


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    directions: Tensor
    sizes: Tensor
    rest: Tensor


@dataclass(frozen=True, kw_only=True)
class CurvatureMatrices:
    """The matrices P of all margins of a two-layer network whose first layer acts within a span.

    Each keeps at most `directions` directions and is computed on first use.
    """

    network: Network
    span: Span
    directions: int
    found: dict[tuple[int, int], _Matrix] = field(default_factory=dict)

    @staticmethod
    def of(exact: Network, space: Space, directions: int) -> CurvatureMatrices | None:
        """None unless `exact` (in float64) has two layers and its first layer acts in a span."""
        if exact.depth != 2 or not isinstance(space, Span):
            return None
        return CurvatureMatrices(network=exact, span=space, directions=directions)

    def at(self, label: Tensor, target: Tensor, gradient: Tensor, u: Tensor) -> MatrixAtPoints:
        """P of the margins (label, target) at points u with gradients (n, size) in the span."""
        pair = label * self.network.classes + target
        order = pair.argsort()
        numbers, counts = pair[order].unique_consecutive(return_counts=True)
        matrices = [self._matrix(*divmod(i, self.network.classes)) for i in numbers.tolist()]
        each = torch.arange(len(numbers), device=pair.device).repeat_interleave(counts)
        back = torch.empty_like(order)
        back[order] = each
        parts = counts.tolist()

        def along(points: Tensor) -> Tensor:
            sorted_ = points.index_select(0, order).double()
            found = torch.empty_like(sorted_[:, : matrices[0].directions.shape[1]])
            for matrix, rows, out in zip(
                matrices, sorted_.split(parts), found.split(parts), strict=True
            ):
                torch.mm(rows, matrix.directions, out=out)
            return torch.empty_like(found).index_copy_(0, order, found)

        return MatrixAtPoints(
            of_gradient=along(gradient),
            of_point=along(u),
            sizes=torch.stack([m.sizes for m in matrices])[back],
            rest=torch.stack([m.rest for m in matrices])[back],
        )

    def _matrix(self, y: int, t: int) -> _Matrix:
        if (y, t) not in self.found:
            self.found[y, t] = _matrix(self.network, self.span, y, t, self.directions)
        return self.found[y, t]


def _matrix(network: Network, span: Span, y: int, t: int, directions_kept: int) -> _Matrix:
    """With W_1 = A B + R: `x^T P x <= (|D^(1/2) A B x| + |D^(1/2)| |R| |x|)^2` for D = diag(p)."""
    weights = curvature_weights(
        *readout_interval(network.layers[-1], y, t), network.nonlinearities[0]
    )
    action = span.action
    gram = action.T @ (weights[:, None] * action)
    gram = (gram + gram.T) / 2
    values, vectors = torch.linalg.eigh(gram)
    k = min(directions_kept, span.size)
    below = values[-k - 1].clamp(min=0) if span.size > k else values.new_zeros(())
    sizes, directions = (values[-k:] - below).clamp(min=0), vectors[:, -k:].contiguous()
    kept = (directions * sizes) @ directions.T
    eye = torch.eye(k, dtype=directions.dtype, device=directions.device)
    tilted = float(torch.linalg.matrix_norm(directions.T @ directions - eye))
    tilted += gamma(span.size + 4) * k
    # The rounding error of forming both products.
    mass = float((weights * action.square().sum(1)).sum()) * SLACK
    rounding = gamma(len(action) + 8) * mass
    rounding += gamma(k + 8) * float(sizes.sum()) * (1 + tilted)
    left = max(0.0, eigenvalue_upper(gram - (kept + kept.T) / 2, float(below))) + rounding
    # The skew of V^T V for V in pixels, that is B^T V.
    skew = tilted + span.skew * (1 + tilted)
    missed = math.sqrt(float(weights.max())) * span.slack.pull
    most = math.sqrt((float(sizes.max()) * (1 + skew) + left) * (1 + span.skew))
    rest = left * (1 + span.skew) + 2 * most * missed + missed * missed
    return _Matrix(
        directions=directions,
        sizes=sizes * (1 + skew) * (1 + 4 * EPS),
        rest=sizes.new_tensor(rest * SLACK),
    )
