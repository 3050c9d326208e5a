"""The built-in activations, each with every critical point of its slope and curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from raycrt.activations.record import Activation, sigmoid
from raycrt.errors import require


def _root(function: Callable[[float], float], lo: float, hi: float) -> float:
    """The zero of `function` in [lo, hi] by bisection to the last bit; signs at the ends differ."""
    rising = function(hi) > 0
    while lo < (middle := (lo + hi) / 2) < hi:
        lo, hi = (lo, middle) if (function(middle) > 0) == rising else (middle, hi)
    return lo


@cache
def softplus(beta: float = 1.0) -> Activation:
    """log(1 + exp(beta z)) / beta: s'' = beta p (1 - p) with p = sigmoid(beta z), largest at 0."""
    require(beta > 0 and math.isfinite(beta), "beta > 0 and finite", beta=beta)
    if beta == 1:  # two passes over memory fewer than with the scaling
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
    p = sigmoid(z)
    return (1 - 2 * p) * (3 + z * (1 - 2 * p)) - 2 * z * p * (1 - p)


def _erf_slope(z: Any, xp: Any) -> Any:
    return 2 / math.sqrt(math.pi) * xp.exp(-z * z)


# s'' of SiLU is even: it vanishes where z tanh(z/2) = 2, and s''' at 0 and at one point beyond it.
_SILU_SECOND_ZERO = _root(lambda z: z * math.tanh(z / 2) - 2, 2.0, 3.0)
_SILU_THIRD_ZERO = _root(_silu_third, 3.0, 6.0)

FIXED = (
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
        slope_critical=(-_SILU_SECOND_ZERO, _SILU_SECOND_ZERO),
        curvature_critical=(-_SILU_THIRD_ZERO, 0.0, _SILU_THIRD_ZERO),
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
