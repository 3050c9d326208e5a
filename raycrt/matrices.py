"""Curvature of margins as matrices: along a few directions they may bend, along others hardly.

With two layers `Hess f >= -P` everywhere for `P = W_1^T diag(p) W_1` and p as
`raycrt.readout_curvature` has it; m is its largest eigenvalue. The first eigenvectors V are kept,
as coordinates in a span:

    P <= V diag(d) V^T + rest I,    V^T V <= (1 + skew) I,

proved for the V that is stored by a Cholesky factorisation, however it was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raycrt.bending import Bending
from raycrt.network import Network
from raycrt.readout_curvature import bending_weights, readout_interval
from raycrt.span import Space, Span
from raycrt.spectral import EPS, eigenvalue_upper, gamma

# Directions that are kept of a matrix; those beyond count as its largest.
_DIRECTIONS = 32
_SLACK = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    directions: Tensor
    sizes: Tensor
    rest: Tensor


@dataclass(frozen=True, kw_only=True)
class CurvatureMatrices:
    """The matrices of all margins of a network of two layers whose first acts within a span.

    Each is found when it is first asked for.
    """

    network: Network
    span: Span
    found: dict[tuple[int, int], _Matrix] = field(default_factory=dict)

    @staticmethod
    def of(exact: Network, space: Space) -> CurvatureMatrices | None:
        """`exact` is in float64; None where it has other layers or acts on all pixels."""
        if exact.depth != 2 or not isinstance(space, Span):
            return None
        return CurvatureMatrices(network=exact, span=space)

    def bending(self, label: Tensor, target: Tensor, gradient: Tensor, u: Tensor) -> Bending:
        """That of margins (label, target) with gradients and points (n, size) in the span."""
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

        return Bending(
            of_gradient=along(gradient),
            of_point=along(u),
            sizes=torch.stack([m.sizes for m in matrices])[back],
            rest=torch.stack([m.rest for m in matrices])[back],
        )

    def _matrix(self, y: int, t: int) -> _Matrix:
        if (y, t) not in self.found:
            self.found[y, t] = _matrix(self.network, self.span, y, t)
        return self.found[y, t]


def _matrix(network: Network, span: Span, y: int, t: int) -> _Matrix:
    """With W_1 = A B + R: `x^T P x <= (|D^(1/2) A B x| + |D^(1/2)| |R| |x|)^2` for D = diag(p)."""
    weights = bending_weights(*readout_interval(network.layers[-1], y, t), network.activation)
    action = span.action
    gram = action.T @ (weights[:, None] * action)
    gram = (gram + gram.T) / 2
    values, vectors = torch.linalg.eigh(gram)
    k = min(_DIRECTIONS, span.size)
    below = values[-k - 1].clamp(min=0) if span.size > k else values.new_zeros(())
    sizes, directions = (values[-k:] - below).clamp(min=0), vectors[:, -k:].contiguous()
    kept = (directions * sizes) @ directions.T
    eye = torch.eye(k, dtype=directions.dtype, device=directions.device)
    tilted = float(torch.linalg.matrix_norm(directions.T @ directions - eye))
    tilted += gamma(span.size + 4) * k
    # What forming both products can have added.
    mass = float((weights * action.square().sum(1)).sum()) * _SLACK
    rounding = gamma(len(action) + 8) * mass
    rounding += gamma(k + 8) * float(sizes.sum()) * (1 + tilted)
    left = max(0.0, eigenvalue_upper(gram - (kept + kept.T) / 2, float(below))) + rounding
    # V^T V for the V in pixels, B^T V.
    skew = tilted + span.skew * (1 + tilted)
    missed = math.sqrt(float(weights.max())) * span.slack.pull
    most = math.sqrt((float(sizes.max()) * (1 + skew) + left) * (1 + span.skew))
    rest = left * (1 + span.skew) + 2 * most * missed + missed * missed
    return _Matrix(
        directions=directions,
        sizes=sizes * (1 + skew) * (1 + 4 * EPS),
        rest=sizes.new_tensor(rest * _SLACK),
    )
