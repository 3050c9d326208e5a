"""Quadratics near activations, and proved bounds on what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.activations import value_error
from raycrt.bounds.spectral import EPS, SLACK
from raycrt.networks.nonlinearity import Nonlinearity

# Points of an interval at which a quadratic is fitted and compared.
_POINTS = 33
# Shorter intervals, relative to 1 and the numbers in them, are widened to this.
_SHORTEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """`|s(c + d) - (value + slope d + bend d^2)| <= rest` for each feature, where c + d is in the
    interval that was asked for; all tensors are float64 (width,)."""

    value: Tensor
    slope: Tensor
    bend: Tensor
    rest: Tensor


def fit(nonlinearity: Nonlinearity, centre: Tensor, low: Tensor, high: Tensor) -> Quadratics:
    """The quadratics of a `nonlinearity` about `centre` on the intervals `low` .. `high` (width,).

    The coefficients are a least-squares fit; any would do. Between two neighbouring points at a
    distance h, what is left differs from its largest value there by at most h^2/8 times its largest
    second derivative, `|s'' - 2 bend|`, which the range of s'' on the interval bounds.
    """
    middle = (low + high) / 2
    half = torch.maximum((high - low) / 2, _SHORTEST * (1 + middle.abs()))
    # Rounding may not leave a gap at the ends.
    half = half * (1 + 8 * EPS) + 8 * EPS * middle.abs()
    steps = torch.linspace(-1, 1, _POINTS, dtype=torch.float64, device=low.device)[:, None]
    points = middle + half * steps
    values = nonlinearity.value(points)
    _, tilt, curve = _least_squares(steps) @ values
    bend = curve / half.square()
    # From powers of (z - middle) to powers of d = z - centre.
    offset = centre - middle
    slope = tilt / half + 2 * bend * offset
    d = points - centre
    left = values - slope * d - bend * d.square()
    value = (left.amax(0) + left.amin(0)) / 2
    terms = values.abs() + value.abs() + (slope * d).abs() + bend.abs() * d.square()
    rounding = value_error(values.abs(), points.abs(), EPS) + 16 * EPS * terms
    least, most = nonlinearity.curvature_ends_on(points[0], points[-1])
    second = torch.maximum((most - 2 * bend).abs(), (least - 2 * bend).abs())
    gap = (points[1:] - points[:-1]).amax(0) * SLACK
    rest = ((left - value).abs() + rounding).amax(0) + gap.square() / 8 * second
    return Quadratics(value=value, slope=slope, bend=bend, rest=rest * SLACK)


def _least_squares(steps: Tensor) -> Tensor:
    """The matrix (3, points) that fits a quadratic to values at `steps` (points, 1) in -1 .. 1,
    with the weights for which its largest error is nearly as small as possible."""
    powers = torch.cat([torch.ones_like(steps), steps, steps.square()], 1)
    weights = (1.1 - steps.square()).rsqrt()
    weighted = powers * weights
    return torch.linalg.solve(powers.T @ weighted, weighted.T)
