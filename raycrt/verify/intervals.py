"""Interval arithmetic: ranges of a formula and its derivative for z in a cell.

Each result is widened by its rounding error, and the result of a library function by 4 units in
the last place. Underflow is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from raycrt.activations.functions_of_numpy import erf, sigmoid

_ROUNDING, _LIBRARY = 2.0**-52, 5 * 2.0**-52


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, arrays of one shape; operators work as for numbers.

    `slope` holds the derivative with respect to z, by the rules of differentiation; None where that
    is 0, or where z was given without a slope. A slope has no slope of its own. `rest` holds 1
    minus these numbers where that is known more accurately than by subtraction, as for a sigmoid
    near 1.
    """

    low: Any
    high: Any
    slope: Interval | None = None
    rest: Interval | None = None

    # Makes numpy scalars on the left defer to these operators.
    __array_ufunc__ = None

    @property
    def bare(self) -> Interval:
        return Interval(self.low, self.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low, None if self.slope is None else -self.slope)

    def __add__(self, other: Any) -> Interval:
        other = of(other)
        slope = _sum(self.slope, other.slope)
        return _outward(self.low + other.low, self.high + other.high, slope)

    def __mul__(self, other: Any) -> Interval:
        other = of(other)
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        # Infinity stands for no bound, so 0 times it is 0.
        corners = [np.where(np.isnan(corner), 0.0, corner) for corner in corners]
        slope = _sum(_product(self.slope, other), _product(other.slope, self))
        low, high, rest = np.min(corners, axis=0), np.max(corners, axis=0), None
        if self.rest is not None and other.rest is not None:
            rest = self.rest + self.bare * other.rest
        return _outward(low, high, slope, rest=rest)

    def __pow__(self, exponent: float) -> Interval:
        if exponent < 0 and exponent != -1:
            return (self**-exponent) ** -1
        if exponent == int(exponent) and exponent >= 0:
            return of(math.prod([self] * int(exponent), start=1.0))
        ends = np.sort([self.low**exponent, self.high**exponent], axis=0)
        # Roots need positive numbers; 1/z is unbounded around 0.
        known = (self.low > 0) | ((self.high < 0) & (exponent == -1))
        low, high = np.where(known, ends[0], -np.inf), np.where(known, ends[1], np.inf)
        slope = None if self.slope is None else self.slope * exponent * self.bare ** (exponent - 1)
        return _outward(low, high, slope, _LIBRARY)

    def __sub__(self, other: Any) -> Interval:
        return self + (-other)

    def __rsub__(self, other: Any) -> Interval:
        found = -self + other
        if self.rest is None or np.any(other != 1):
            return found
        low, high = np.maximum(found.low, self.rest.low), np.minimum(found.high, self.rest.high)
        return Interval(low, high, found.slope, rest=self.bare)

    def __truediv__(self, other: Any) -> Interval:
        return self * of(other) ** -1

    def __rtruediv__(self, other: Any) -> Interval:
        return self**-1 * other

    __radd__, __rmul__ = __add__, __mul__


def of(value: Any) -> Interval:
    """A number, or an array of them, as an interval."""
    return value if isinstance(value, Interval) else Interval(value, value)


def _sum(a: Interval | None, b: Interval | None) -> Interval | None:
    return b if a is None else a if b is None else a + b


def _product(slope: Interval | None, other: Interval) -> Interval | None:
    return None if slope is None else slope * other.bare


def _outward(
    low: Any,
    high: Any,
    slope: Interval | None,
    by: float = _ROUNDING,
    rest: Interval | None = None,
) -> Interval:
    """An interval widened by the relative amount `by`; unbounded where NaN was computed."""
    low, high = low - by * np.abs(low), high + by * np.abs(high)
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    return Interval(low, high, slope, rest)


def _rising(
    function: Callable[[Any], Any],
    derivative: Callable[[Interval, Interval], Interval],
    least: float = -np.inf,
    most: float = np.inf,
    falling: Callable[[Any], Any] | None = None,
) -> Callable[[Interval], Interval]:
    """An increasing function with values in `least` .. `most`, on intervals.

    `derivative` takes z and the value; `falling` is 1 minus the function.
    """

    def apply(z: Interval) -> Interval:
        value = _outward(function(z.low), function(z.high), None, _LIBRARY)
        rest = (
            None if falling is None else _outward(falling(z.high), falling(z.low), None, _LIBRARY)
        )
        value = Interval(np.maximum(value.low, least), np.minimum(value.high, most), rest=rest)
        slope = None if z.slope is None else z.slope * derivative(z.bare, value)
        return Interval(value.low, value.high, slope, rest)

    return apply


_sigmoid = _rising(sigmoid, lambda z, p: p * (1 - p), 0.0, 1.0, falling=lambda z: sigmoid(-z))
_exp = _rising(np.exp, lambda z, e: e, 0.0)

# The functions that formulas are composed of.
INTERVALS = SimpleNamespace(
    exp=_exp,
    tanh=_rising(np.tanh, lambda z, t: 1 - t * t, -1.0, 1.0, falling=lambda z: 2 * sigmoid(-2 * z)),
    arctan=_rising(np.arctan, lambda z, a: 1 / (1 + z * z)),
    erf=_rising(erf, lambda z, e: 2 / math.sqrt(math.pi) * _exp(-(z * z)), -1.0, 1.0),
    sigmoid=_sigmoid,
    softplus=_rising(lambda z: np.logaddexp(0.0, z), lambda z, s: _sigmoid(z), 0.0),
)
