"""Activation records: a function, its first two derivatives, and the ranges derived from them.

On an interval a derivative takes its extremes at the end points or where the next derivative
vanishes, so listing those critical points gives exact ranges, locally and globally.

The formulas are arithmetic (+, -, *, /, **) and functions of a namespace `xp`: `softplus`,
`sigmoid`, `tanh`, `arctan`, `exp` and `erf`, of torch, of numpy or of intervals. So the solver and
the independent checker state the same theorem without sharing the code that proves it: the checker
derives the ranges from the formulas alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from raycrt.activations import functions_of_numpy

Formula = Callable[[Any, Any], Any]
Range = tuple[float, float]

# Twice the largest error, in units in the last place, assumed of a library's exp, log1p, tanh, ...
ULPS = 8


# Functions of numpy arrays under the names that formulas use, and those that ranges need.
NUMPY = SimpleNamespace(
    exp=np.exp,
    tanh=np.tanh,
    arctan=np.arctan,
    erf=functions_of_numpy.erf,
    sigmoid=functions_of_numpy.sigmoid,
    softplus=lambda z: np.logaddexp(0.0, z),
    minimum=np.minimum,
    maximum=np.maximum,
    where=np.where,
    clip=np.clip,
)


def value_error(value: Any, z: Any, eps: float) -> Any:
    """Upper bound on the rounding error of a computed s(z) of size `value` >= |s(z)| at a z of size
    `z` >= |z|, with machine epsilon `eps`, underflow apart; for arrays or numbers."""
    return ULPS * eps * (value + z)


def slope_error(slope_bound: float, eps: float) -> float:
    """Upper bound on the rounding error of a computed s'(z) with |s'| <= `slope_bound`, underflow
    apart."""
    return 16 * ULPS * eps * max(1.0, slope_bound)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A C^2 function s with everything that a curvature bound needs to know about it.

    `value`, `slope`, `curvature` are s, s', s'' as functions of (z, xp). `slope_critical` holds
    every zero of s'', `curvature_critical` every zero of s''', `slope_limits` the limits of s' at
    minus and plus infinity (the limits of s'' are 0).
    """

    name: str
    value: Formula
    slope: Formula
    curvature: Formula
    slope_critical: tuple[float, ...]
    curvature_critical: tuple[float, ...]
    slope_limits: Range

    @property
    def slope_range(self) -> Range:
        """`lo <= s'(z) <= hi` for every real z."""
        return _hull([self.slope(c, SCALAR) for c in self.slope_critical], self.slope_limits)

    @property
    def curvature_range(self) -> Range:
        """`lo <= s''(z) <= hi` for every real z; `lo <= 0 <= hi`."""
        return _hull([self.curvature(c, SCALAR) for c in self.curvature_critical], (0.0, 0.0))

    @property
    def slope_bound(self) -> float:
        """`|s'(z)| <= bound` for every real z: the Lipschitz constant of s."""
        return max(abs(end) for end in self.slope_range)

    @property
    def curvature_bound(self) -> float:
        """`|s''(z)| <= bound` for every real z."""
        return max(abs(end) for end in self.curvature_range)

    def slope_range_on(self, lo: Any, hi: Any, xp: Any) -> tuple[Any, Any]:
        """Elementwise bounds of s' on the intervals [lo, hi], proved for float64 arrays."""
        return _range_on(self.slope, self.slope_critical, self.slope_range, lo, hi, xp)

    def curvature_range_on(self, lo: Any, hi: Any, xp: Any) -> tuple[Any, Any]:
        """Elementwise bounds of s'' on the intervals [lo, hi], proved for float64 arrays."""
        return _range_on(self.curvature, self.curvature_critical, self.curvature_range, lo, hi, xp)


def _hull(values: list[float], limits: Range) -> Range:
    """Smallest interval holding `values` and `limits`, widened by their rounding."""
    ends = [*values, *limits]
    width = ULPS * math.ulp(1.0) * max(abs(e) for e in ends)
    lo, hi = min(ends), max(ends)
    # An end that is a limit is never attained and is an exact constant: it needs no widening.
    return (lo if lo in limits else lo - width, hi if hi in limits else hi + width)


# Ranges on intervals are widened by this, relative to the largest end of the overall range.
_WIDTH = 2.0**-35


def _range_on(
    formula: Formula, critical: tuple[float, ...], overall: Range, lo: Any, hi: Any, xp: Any
) -> tuple[Any, Any]:
    at_lo, at_hi = formula(lo, xp), formula(hi, xp)
    low, high = xp.minimum(at_lo, at_hi), xp.maximum(at_lo, at_hi)
    for point in critical:
        slack = ULPS * math.ulp(max(1.0, abs(point)))
        inside = (lo <= point + slack) & (hi >= point - slack)
        extreme = formula(point, SCALAR)
        low = xp.where(inside & (low > extreme), extreme, low)
        high = xp.where(inside & (high < extreme), extreme, high)
    # Every formula is a sum of at most four products of library functions bounded by 4, whose
    # rounding takes only a part of this width. A checker that derives the ranges by interval
    # arithmetic may need all of it, for the rounding of a product with z = 1000.
    width = _WIDTH * max(abs(overall[0]), abs(overall[1]))
    return xp.clip(low - width, *overall), xp.clip(high + width, *overall)


def sigmoid(z: float) -> float:
    e = math.exp(-abs(z))
    return 1 / (1 + e) if z >= 0 else e / (1 + e)


SCALAR = SimpleNamespace(
    exp=math.exp,
    tanh=math.tanh,
    arctan=math.atan,
    erf=math.erf,
    sigmoid=sigmoid,
    softplus=lambda z: max(z, 0.0) + math.log1p(math.exp(-abs(z))),
)
