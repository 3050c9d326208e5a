"""Activations: twice differentiable functions with proved slope and curvature ranges.

One `Activation` record states a function s and its first two derivatives. Everything else is
derived: on an interval a derivative takes its extremes at the end points or where the next
derivative vanishes, so listing those critical points gives exact ranges, locally and globally.

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

from raycrt.errors import InvalidInput, require

Formula = Callable[[Any, Any], Any]
Range = tuple[float, float]

# Twice the worst error, in units in the last place, assumed of a library's exp, log1p, tanh, ...
ULPS = 8


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A C^2 function s with everything that a curvature bound needs to know of it.

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
        return _hull([self.slope(c, _SCALAR) for c in self.slope_critical], self.slope_limits)

    @property
    def curvature_range(self) -> Range:
        """`lo <= s''(z) <= hi` for every real z; `lo <= 0 <= hi`."""
        return _hull([self.curvature(c, _SCALAR) for c in self.curvature_critical], (0.0, 0.0))

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


# Ranges on intervals are this much wider, beside the largest number of the overall range.
_WIDTH = 2.0**-35


def _range_on(
    formula: Formula, critical: tuple[float, ...], overall: Range, lo: Any, hi: Any, xp: Any
) -> tuple[Any, Any]:
    at_lo, at_hi = formula(lo, xp), formula(hi, xp)
    low, high = xp.minimum(at_lo, at_hi), xp.maximum(at_lo, at_hi)
    for point in critical:
        slack = ULPS * math.ulp(max(1.0, abs(point)))
        inside = (lo <= point + slack) & (hi >= point - slack)
        extreme = formula(point, _SCALAR)
        low = xp.where(inside & (low > extreme), extreme, low)
        high = xp.where(inside & (high < extreme), extreme, high)
    # Every formula below is a sum of at most four products of library functions bounded by 4: a
    # part of this covers their rounding. All of it is what a checker may need that derives the
    # ranges by interval arithmetic, where a product with a z of 1000 rounds as much as that is.
    width = _WIDTH * max(abs(overall[0]), abs(overall[1]))
    return xp.clip(low - width, *overall), xp.clip(high + width, *overall)


def _sigmoid(z: float) -> float:
    e = math.exp(-abs(z))
    return 1 / (1 + e) if z >= 0 else e / (1 + e)


_SCALAR = SimpleNamespace(
    exp=math.exp,
    tanh=math.tanh,
    arctan=math.atan,
    erf=math.erf,
    sigmoid=_sigmoid,
    softplus=lambda z: max(z, 0.0) + math.log1p(math.exp(-abs(z))),
)


def _root(function: Callable[[float], float], lo: float, hi: float) -> float:
    """The zero of `function` in [lo, hi] by bisection to the last bit; signs at the ends differ."""
    rising = function(hi) > 0
    while lo < (middle := (lo + hi) / 2) < hi:
        lo, hi = (lo, middle) if (function(middle) > 0) == rising else (middle, hi)
    return lo


def softplus(beta: float = 1.0) -> Activation:
    """log(1 + exp(beta z)) / beta: s'' = beta p (1 - p) with p = sigmoid(beta z), largest at 0."""
    require(beta > 0 and math.isfinite(beta), "beta > 0 and finite", beta=beta)
    if beta == 1:  # without the scaling, two passes over memory less
        return Activation(
            name="softplus",
            value=lambda z, xp: xp.softplus(z),
            slope=lambda z, xp: xp.sigmoid(z),
            curvature=lambda z, xp: _sigmoid_slope(z, xp),
            slope_critical=(),
            curvature_critical=(0.0,),
            slope_limits=(0.0, 1.0),
        )

    def curvature(z: Any, xp: Any) -> Any:
        p = xp.sigmoid(beta * z)
        return beta * p * (1 - p)

    return Activation(
        name="softplus",
        value=lambda z, xp: xp.softplus(beta * z) / beta,
        slope=lambda z, xp: xp.sigmoid(beta * z),
        curvature=curvature,
        slope_critical=(),
        curvature_critical=(0.0,),
        slope_limits=(0.0, 1.0),
    )


def _sigmoid_slope(z: Any, xp: Any) -> Any:
    p = xp.sigmoid(z)
    return p * (1 - p)


def _sigmoid_curvature(z: Any, xp: Any) -> Any:
    p = xp.sigmoid(z)
    return p * (1 - p) * (1 - 2 * p)


def _tanh_slope(z: Any, xp: Any) -> Any:
    t = xp.tanh(z)
    return 1 - t * t


def _tanh_curvature(z: Any, xp: Any) -> Any:
    t = xp.tanh(z)
    return -2 * t * (1 - t * t)


def _normal_density(z: Any, xp: Any) -> Any:
    return xp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _normal_distribution(z: Any, xp: Any) -> Any:
    return (1 + xp.erf(z / math.sqrt(2))) / 2


def _silu_slope(z: Any, xp: Any) -> Any:
    p = xp.sigmoid(z)
    return p * (1 + z * (1 - p))


def _silu_curvature(z: Any, xp: Any) -> Any:
    p = xp.sigmoid(z)
    return p * (1 - p) * (2 + z * (1 - 2 * p))


def _silu_third(z: float) -> float:
    """s'''(z) / (p (1 - p)) with p = sigmoid(z), by the product rule on s''."""
    p = _sigmoid(z)
    return (1 - 2 * p) * (3 + z * (1 - 2 * p)) - 2 * z * p * (1 - p)


def _erf_slope(z: Any, xp: Any) -> Any:
    return 2 / math.sqrt(math.pi) * xp.exp(-z * z)


# s'' of SiLU is even: it vanishes where z tanh(z/2) = 2, and s''' at 0 and at one point beyond it.
_SILU_FLAT = _root(lambda z: z * math.tanh(z / 2) - 2, 2.0, 3.0)
_SILU_BEND = _root(_silu_third, 3.0, 6.0)

_FIXED = (
    Activation(
        name="sigmoid",
        value=lambda z, xp: xp.sigmoid(z),
        slope=_sigmoid_slope,
        curvature=_sigmoid_curvature,
        slope_critical=(0.0,),
        curvature_critical=(-math.log(2 + math.sqrt(3)), math.log(2 + math.sqrt(3))),
        slope_limits=(0.0, 0.0),
    ),
    Activation(
        name="tanh",
        value=lambda z, xp: xp.tanh(z),
        slope=_tanh_slope,
        curvature=_tanh_curvature,
        slope_critical=(0.0,),
        curvature_critical=(-math.atanh(1 / math.sqrt(3)), math.atanh(1 / math.sqrt(3))),
        slope_limits=(0.0, 0.0),
    ),
    Activation(
        name="arctan",
        value=lambda z, xp: xp.arctan(z),
        slope=lambda z, xp: 1 / (1 + z * z),
        curvature=lambda z, xp: -2 * z / (1 + z * z) ** 2,
        slope_critical=(0.0,),
        curvature_critical=(-1 / math.sqrt(3), 1 / math.sqrt(3)),
        slope_limits=(0.0, 0.0),
    ),
    Activation(
        name="gelu",
        value=lambda z, xp: z * _normal_distribution(z, xp),
        slope=lambda z, xp: _normal_distribution(z, xp) + z * _normal_density(z, xp),
        curvature=lambda z, xp: _normal_density(z, xp) * (2 - z * z),
        slope_critical=(-math.sqrt(2), math.sqrt(2)),
        curvature_critical=(-2.0, 0.0, 2.0),
        slope_limits=(0.0, 1.0),
    ),
    Activation(
        name="silu",
        value=lambda z, xp: z * xp.sigmoid(z),
        slope=_silu_slope,
        curvature=_silu_curvature,
        slope_critical=(-_SILU_FLAT, _SILU_FLAT),
        curvature_critical=(-_SILU_BEND, 0.0, _SILU_BEND),
        slope_limits=(0.0, 1.0),
    ),
    Activation(
        name="erf",
        value=lambda z, xp: xp.erf(z),
        slope=_erf_slope,
        curvature=lambda z, xp: -2 * z * _erf_slope(z, xp),
        slope_critical=(0.0,),
        curvature_critical=(-1 / math.sqrt(2), 1 / math.sqrt(2)),
        slope_limits=(0.0, 0.0),
    ),
)

ACTIVATIONS: dict[str, Activation] = {"softplus": softplus(), **{a.name: a for a in _FIXED}}


def activation(name: str, beta: float = 1.0) -> Activation:
    """The activation called `name`; `beta` sharpens softplus and no other."""
    if name not in ACTIVATIONS:
        raise InvalidInput(f"activation must be one of {sorted(ACTIVATIONS)}, but got {name!r}")
    return softplus(beta) if name == "softplus" else ACTIVATIONS[name]
