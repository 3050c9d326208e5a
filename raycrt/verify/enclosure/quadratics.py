"""Quadratics near the activations of a layer, with proved bounds on the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raycrt.verify.hidden import Hidden
from raycrt.verify.norms import SLACK, UNIT
from raycrt.verify.radius import SMALLEST, VALUE_UNITS

# A quadratic is fitted and compared at this many points of an interval.
_POINTS = 33
# Half the length of an interval is at least this, also relative to the numbers in it.
_SHORTEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """`|s(z) - (value + slope d + bend d^2)| <= rest`, d = z - centre, for every z of an interval
    of each feature; all (width,)."""

    value: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    rest: np.ndarray

    @staticmethod
    def fitted(hidden: Hidden, centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> Quadratics:
        """Those of the features of `hidden` about `centre` where z is in `low` .. `high` (width,).

        The rest r has `r'' = s'' - 2 bend`. Between neighbouring points at a distance h it is
        within h^2 / 8 sup|r''| of the line through its values at both, so at most the larger one
        and that.
        """
        middle, half = (low + high) / 2, (high - low) / 2
        half = np.maximum(half, np.maximum(_SHORTEST, _SHORTEST * np.abs(middle)))
        steps = np.linspace(-1.0, 1.0, _POINTS)[:, None]
        points = middle + half * steps
        points[0], points[-1] = np.minimum(points[0], low), np.maximum(points[-1], high)
        values = hidden.value(points)
        _, tilt, curve = _least_squares(steps[:, 0]) @ values
        # The coefficients of powers of z - middle become those of powers of z - centre.
        bend = curve / half**2
        slope = tilt / half + 2 * bend * (centre - middle)
        d = points - centre
        linear, square = slope * d, bend * d**2
        left = values - linear - square
        value = (left.max(0) + left.min(0)) / 2
        sizes = np.abs(values) + np.abs(linear) + np.abs(square) + np.abs(value)
        rounding = VALUE_UNITS * UNIT * (np.abs(values) + np.abs(points)) * SLACK
        rounding = rounding + 16 * UNIT * sizes + 16 * SMALLEST[UNIT]
        least, most = hidden.curvatures.on(points[0], points[-1])
        second = np.maximum(np.abs(least - 2 * bend), np.abs(most - 2 * bend))
        gap = np.diff(points, axis=0).max(0)
        rest = (np.abs(left - value) + rounding).max(0) + gap**2 / 8 * second
        return Quadratics(value=value, slope=slope, bend=bend, rest=rest * SLACK)


def _least_squares(steps: np.ndarray) -> np.ndarray:
    """The matrix (3, points) from values at `steps` to the quadratic of the least sum of squares,
    weighted by (1.1 - step^2)^(-1/2), which counts the ends of an interval more."""
    powers = np.stack([np.ones_like(steps), steps, steps**2], 1)
    weighted = powers / np.sqrt(1.1 - steps**2)[:, None]
    return np.linalg.solve(powers.T @ weighted, weighted.T)
