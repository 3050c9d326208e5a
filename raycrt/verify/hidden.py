"""The features between two matrices: an activation on the first ones, the rest passed on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raycrt.activations import NUMPY, Activation
from raycrt.verify import ranges


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """`activation` acts on the first `active` of `width` features; the others are passed on, with
    slope 1 and curvature 0."""

    activation: Activation
    active: int
    width: int

    @cached_property
    def slopes(self) -> Ends:
        """Proved ranges of the slopes."""
        return Ends(ranges.of_slope(self.activation), self.active, self.width, passed=1.0)

    @cached_property
    def curvatures(self) -> Ends:
        """Proved ranges of the curvatures."""
        return Ends(ranges.of_curvature(self.activation), self.active, self.width, passed=0.0)

    @cached_property
    def middle(self) -> np.ndarray:
        """The midpoint of each feature's slopes (width,)."""
        return (self.slopes.low + self.slopes.high) / 2

    @cached_property
    def deviation(self) -> float:
        """The largest distance of a slope from its midpoint, up to rounding."""
        return float(((self.slopes.high - self.slopes.low) / 2).max())

    @cached_property
    def at_zero(self) -> float:
        """The norm of the features' values at z = 0, up to rounding."""
        return abs(float(self.activation.value(0.0, NUMPY))) * math.sqrt(self.active)

    def value(self, z: np.ndarray) -> np.ndarray:
        """The features (..., width) from z (..., width)."""
        return self._acted(lambda part: self.activation.value(part, NUMPY), z, z)

    def slope(self, z: np.ndarray) -> np.ndarray:
        """The derivative of each feature in its own z (..., width)."""
        return self._acted(lambda part: self.activation.slope(part, NUMPY), z, np.ones_like(z))

    def _acted(
        self, formula: Callable[[np.ndarray], np.ndarray], z: np.ndarray, passed: np.ndarray
    ) -> np.ndarray:
        if self.active == self.width:
            return formula(z)
        acted = formula(z[..., : self.active])
        return np.concatenate([acted, passed[..., self.active :]], axis=-1)


@dataclass(frozen=True)
class Ends:
    """Proved ranges of a number of each feature: those of `acted` for the first `active` of `width`
    features, and `passed` for the others."""

    acted: ranges.Range
    active: int
    width: int
    passed: float

    @cached_property
    def low(self) -> np.ndarray:
        """The least value of each feature (width,)."""
        return self._with_passed(np.full(self.active, self.acted.low))

    @cached_property
    def high(self) -> np.ndarray:
        """The largest value of each feature (width,)."""
        return self._with_passed(np.full(self.active, self.acted.high))

    @cached_property
    def bound(self) -> float:
        """The largest value of a feature, in size."""
        return float(np.maximum(np.abs(self.low), np.abs(self.high)).max())

    def on(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ranges (width,) where z is in `low` .. `high` (width,)."""
        least, most = self.acted.on(low[: self.active], high[: self.active])
        return self._with_passed(least), self._with_passed(most)

    def _with_passed(self, acted: np.ndarray) -> np.ndarray:
        return np.concatenate([acted, np.full(self.width - self.active, self.passed)])
