"""Ranges of an activation's slope and curvature, proved from its formulas alone.

Interval arithmetic encloses a formula and its derivative on a cell of the real line. Cells are
halved until the derivative has one sign there or the formula is nearly constant. On any interval
the formula then takes its extremes at the ends or in a cell of the second kind. So no stated
critical point has to be trusted, only that there is none beyond the last one stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from raycrt.activations import Activation
from raycrt.verify.intervals import INTERVALS, Interval, of

# Cells cover the line up to this, or up to twice the last stated critical point.
_FAR = 2.0**10
# A formula is nearly constant where its range is at most this wide, relative to its largest value.
_FLAT = 2.0**-46
# With more undecided cells than this, they are taken as they are: loose, but sound.
_MOST_OPEN = 2**16


@dataclass(frozen=True, kw_only=True)
class Range:
    """`low <= formula(z) <= high` for every z. Where z is in cell i, from `start[i]` to `end[i]`,
    it is in `least[i]` .. `most[i]`; between the cells it is monotone. Beyond -`far` and `far`
    it lies between its value there and its `limits`."""

    formula: Callable[[Any, Any], Any]
    far: float
    limits: tuple[float, float]
    low: float
    high: float
    start: np.ndarray
    end: np.ndarray
    least: np.ndarray
    most: np.ndarray

    @property
    def bound(self) -> float:
        """`|formula(z)| <= bound` for every z."""
        return max(-self.low, self.high)

    def on(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Elementwise bounds for z in `low` .. `high`."""
        (least, most), end = self._at(low), self._at(high)
        least, most = np.minimum(least, end[0]), np.maximum(most, end[1])
        for start, end, *bounds in zip(self.start, self.end, self.least, self.most, strict=True):
            inside = (low <= end) & (high >= start)
            least = np.where(inside, np.minimum(least, bounds[0]), least)
            most = np.where(inside, np.maximum(most, bounds[1]), most)
        return np.maximum(least, self.low), np.minimum(most, self.high)

    def _at(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on the formula at z. Far out, rounding of its terms may exceed its value."""
        near = np.clip(z, -self.far, self.far)
        with np.errstate(all="ignore"):
            value, last = (of(self.formula(of(at), INTERVALS)) for at in (z, near))
        limit = np.where(z < 0, *self.limits)
        return (
            np.maximum(value.low, np.where(z == near, -np.inf, np.minimum(last.low, limit))),
            np.minimum(value.high, np.where(z == near, np.inf, np.maximum(last.high, limit))),
        )


def of_slope(activation: Activation) -> Range:
    return _range(activation.slope, activation.slope_critical, activation.slope_limits)


def of_curvature(activation: Activation) -> Range:
    return _range(activation.curvature, activation.curvature_critical, (0.0, 0.0))


@cache
def _range(
    formula: Callable[[Any, Any], Any], critical: tuple[float, ...], limits: tuple[float, float]
) -> Range:
    """The range of `formula`, monotone towards its `limits` beyond the last `critical` point.

    It depends on the formula alone, so it is proved once for all models with that activation.
    """
    far = max([_FAR, *(2 * abs(point) for point in critical)])
    start, end = np.array([-far, 0.0]), np.array([0.0, far])
    scales = far * 2.0 ** np.arange(-60, 1)
    found: list[tuple[np.ndarray, ...]] = []
    with np.errstate(all="ignore"):
        outermost = of(formula(of(np.array([-far, far])), INTERVALS))
        seen = of(formula(of(np.concatenate([-scales, scales])), INTERVALS))
        largest = float(np.minimum(np.abs(seen.low), np.abs(seen.high)).max())
        while len(start) > 0:
            middle = start + (end - start) / 2
            one = of(np.ones_like(start))
            natural = of(formula(Interval(start, end, slope=one), INTERVALS))
            slope = natural.slope or 0 * one
            # The mean value theorem, which is sharper the narrower a cell is.
            mean = of(formula(of(middle), INTERVALS)) + slope * (Interval(start, end) - middle)
            least, most = np.maximum(natural.low, mean.low), np.minimum(natural.high, mean.high)
            flat = most - least <= _FLAT * largest
            flat |= (middle <= start) | (middle >= end) | (len(start) > _MOST_OPEN)
            undecided = ~((slope.low > 0) | (slope.high < 0))
            kept, split = undecided & flat, undecided & ~flat
            found.append((start[kept], end[kept], least[kept], most[kept]))
            start, middle, end = start[split], middle[split], end[split]
            start, end = np.concatenate([start, middle]), np.concatenate([middle, end])
    start, end, least, most = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Range(
        formula=formula,
        far=far,
        limits=limits,
        low=float(min(*limits, outermost.low.min(), least.min(initial=np.inf))),
        high=float(max(*limits, outermost.high.max(), most.max(initial=-np.inf))),
        start=start,
        end=end,
        least=least,
        most=most,
    )
