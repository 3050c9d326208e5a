"""The last step of every proof: a radius from numbers, less all that rounding can have added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raycrt.bounds.rounding import FirstLayerError, RoundingErrors
from raycrt.margins.curvature_matrix import MatrixAtPoints
from raycrt.margins.radius import dual_radius

EPS = torch.finfo(torch.float64).eps
_SMALLEST = 1e-280
# Bounds of norms are about 1e-19 times the root of the width where float32 squares underflow.
_FLAT = 1e-16
# Stored radii are rounded down by this, relatively, so that a checker's own rounding fits below it.
ROUND_DOWN = 1 - 5e-10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """n margins of `label` against `target` as they were measured at points x0 + u.

    `image_norm` (n,) bounds |x0|, `point_norm` (n,) |x0 + u|. The margins there differ from `value`
    (n,) by at most `value_error` and what the classes' offsets add, and their gradients from a
    vector g by `gradient_error`. The products g.g `gg`, g.u `gu` and u.u `uu`, float64 like all of
    this, have errors of no more than `share` times the product of the norms.
    """

    label: Tensor
    target: Tensor
    image_norm: Tensor
    point_norm: Tensor
    value: Tensor
    value_error: Tensor
    gradient_error: Tensor
    gg: Tensor
    gu: Tensor
    uu: Tensor
    share: float

    def take(self, rows: Tensor) -> Measured:
        parts = {name: part[rows] for name, part in vars(self).items() if name != "share"}
        return Measured(**parts, share=self.share)


@dataclass(frozen=True, kw_only=True)
class RadiusProof:
    """Radii of margins of one network, as theorems about its stored weights in exact arithmetic.

    `errors` bounds the rounding of values and gradients, whatever type these have. With `deployed`,
    the type of a deployment's numbers, its arithmetic's error on the whole ball is taken off
    the margins too: the theorem is then about what the deployment computes.
    """

    errors: RoundingErrors
    deployed: torch.dtype | None = None

    @cached_property
    def offsets(self) -> Tensor:
        """`RoundingErrors.offsets` of float64."""
        return self.errors.offsets(torch.float64)

    @cached_property
    def offsets_deployed(self) -> Tensor:
        """`RoundingErrors.offsets` of the deployment's numbers."""
        assert self.deployed is not None
        return self.errors.offsets(self.deployed)

    def closed_forms(
        self,
        label: Tensor,
        image_norm: Tensor,
        value: Tensor,
        size: Tensor,
        m: Tensor,
        slack: FirstLayerError,
    ) -> Tensor:
        """Proved radii (n, classes) of the margins of `label` (n,) from the images themselves.

        `image_norm` (n, 1) bounds |x0| and `size` the exact gradients' norms: the closed form falls
        with |g| and grows with f, so bounds of both give a bound of it. A gradient that may be zero
        as far as its square in float32 tells proves nothing.
        """
        error = self.errors.margin(image_norm, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value - error - 2 * EPS * value.abs()
        radius = _root(lowered, size, m)
        if self.deployed is not None:
            # No input of the ball that is claimed has a larger norm.
            lowered = lowered - self._deployment_error(label, image_norm + radius)
            radius = _root(lowered, size, m)
        return torch.where(size > _FLAT, radius * ROUND_DOWN, 0.0)

    def constants(
        self, label: Tensor, image_norm: Tensor, value: Tensor, slack: FirstLayerError
    ) -> Tensor:
        """Proved radii (n, classes) of margins that do not depend on the input, infinite `value`
        included: infinite, or what the deployment's arithmetic leaves of that; 0 where the sign is
        not known. Arguments as of `closed_forms`.
        """
        error = self.errors.margin(image_norm, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value * (1 - 4 * EPS) - error
        if self.deployed is None:
            return torch.where(lowered > 0, torch.inf, 0.0)
        # The logarithm of a radius at whose end the deployment's error stays below the margin.
        low, high = torch.full_like(lowered, -_LOGARITHMS), torch.full_like(lowered, _LOGARITHMS)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = lowered > self._deployment_error(label, image_norm + middle.exp2())
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        radius = low.exp2()
        fits = lowered > self._deployment_error(label, image_norm + radius)
        return torch.where(fits, radius * ROUND_DOWN, 0.0)

    def _deployment_error(self, label: Tensor, input_norm: Tensor) -> Tensor:
        """Bounds (n, classes) of the deployment's errors in margins of `label` (n,) at inputs of
        norm `input_norm` (n, classes)."""
        assert self.deployed is not None
        return self.errors.margin(input_norm, self.deployed) + _rows(self.offsets_deployed, label)

    def at_points(self, at: Measured, m: Tensor) -> Tensor:
        """`dual_radius` (n,) of margins of curvature m, less everything that is not known exactly;
        >= 0.

        An error e of the gradient costs `e |x' - x| <= e^2 / (2 b) + b |x' - x|^2 / 2` for any
        b > 0: the margin is lowered by the first term and its curvature raised by b. Where the
        radius is the distance to the boundary more curvature changes nothing, and the cost is of
        second order.
        """
        value, gg, gu, uu, share = at.value, at.gg, at.gu, at.uu, at.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        optimistic = dual_radius(value, gg, gu, uu, m).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        inflation = _cheapest_inflation(optimistic, gg, gu, uu, m, at.gradient_error)
        m = (m + inflation) * (1 + 2 * EPS)
        known = (
            value
            - at.value_error
            - at.gradient_error * (at.gradient_error / inflation) * (0.5 + EPS)
        )
        known = known - _rows(self.offsets, at.label, at.target)
        if self.deployed is not None:
            known = known - _rows(self.offsets_deployed, at.label, at.target)
            known = known - self.errors.margin(at.image_norm + optimistic, self.deployed)
        lowered = known - share * (2 * value.abs() + 2 * size * shift + m * uu)
        numerator = 2 * (lowered - gu) - m * uu
        # Both roots from above: what cancels in |g + m u| is added before the root is taken.
        across = gg + 2 * m * gu + m * m * uu + 2 * share * (size + m * shift).square()
        reach = gg * (1 + share) + 2 * m * (known + share * (value.abs() + known.abs()))
        radius = numerator / (across.clamp(min=0).sqrt() + reach.clamp(min=0).sqrt())
        # Where squares underflow, they say nothing.
        real = (gg * (1 - share) + 2 * m * lowered > 0) & (gg > _SMALLEST)
        radius = torch.minimum(radius, optimistic) * ROUND_DOWN
        return torch.where(real, radius, 0.0).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)

    def by_matrix(self, at: Measured, matrix: MatrixAtPoints) -> Tensor:
        """`at_points` by curvature as a matrix: radii (n,) >= 0.

        With `h = g + lambda u` and any b > 0 and lambda above the pole,

            r^2 = |u|^2 + (2 f - e^2 / b - h^T ((lambda - b) I - P)^-1 h) / lambda,

        e the gradient's error. All of it is rounded to the safe side.
        """
        value, gg, gu, uu, share = at.value, at.gg, at.gu, at.uu, at.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        optimistic = dual_radius(value, gg, gu, uu, matrix.largest).nan_to_num(0.0, 0.0, 0.0)
        optimistic = optimistic.clamp(min=0)
        steep = gg.sqrt() + matrix.largest * uu.sqrt()
        start = torch.where(optimistic > 0, steep / optimistic, steep.square() / value.abs())
        lam, square = matrix.multiplier(value, gg, gu, uu, start)
        # The point lies no further from the ball's end than `square` says, and what a multiplier
        # has to spare above the pole may be given to the inflation.
        spare = (lam - matrix.largest) / 2
        inflation = (at.gradient_error / square.clamp(min=0).sqrt()).nan_to_num(torch.inf)
        least = at.gradient_error / (optimistic + shift)
        inflation = torch.minimum(inflation, torch.maximum(spare, least)).clamp(
            min=_LEAST_INFLATION
        )
        lam = torch.where(inflation <= spare, lam, lam + inflation)
        known = (
            value
            - at.value_error
            - at.gradient_error * (at.gradient_error / inflation) * (0.5 + EPS)
        )
        known = known - _rows(self.offsets, at.label, at.target)
        longest = size + lam * shift
        error = 2 * share * longest
        hh = (gg + 2 * lam * gu + lam * lam * uu).clamp(min=0) + 2 * share * longest.square()
        spent = matrix.spent(lam, inflation, hh, error)

        def reach(known: Tensor) -> Tensor:
            lowered = 2 * (known - share * (value.abs() + known.abs()))
            square = uu * (1 - share) + (lowered - spent) / lam
            square = square - 8 * EPS * (uu + (lowered.abs() + spent) / lam)
            return square.clamp(min=0).sqrt().nan_to_num(0.0, 0.0, 0.0)

        radius = reach(known)
        if self.deployed is not None:
            below = known - _rows(self.offsets_deployed, at.label, at.target)
            below = below - self.errors.margin(at.image_norm + radius * (1 + share), self.deployed)
            radius = torch.minimum(radius, reach(below))
        return torch.where(gg > _SMALLEST, radius * ROUND_DOWN, 0.0).nan_to_num(0.0, 0.0, 0.0)


def _rows(table: Tensor, *numbers: Tensor) -> Tensor:
    return table.to(numbers[0].device)[numbers]


def _cheapest_inflation(
    radius: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, m: Tensor, gradient_error: Tensor
) -> Tensor:
    """About the b > 0 (n,) at which errors `gradient_error` of gradients cost least.

    That is `gradient_error / |x' - x|` for the x' at which the ball of the given radius ends, but
    not so much that a point on the boundary no longer proves its own distance. Any b is sound.
    """
    across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
    tangent = radius.square() + uu + 2 * radius * (gu + m * uu) / across
    inflation = gradient_error / tangent.clamp(min=0).sqrt()
    spare = gg.sqrt() / radius - m
    most = torch.where(spare > 0, spare / 2, torch.inf)
    return (
        torch.minimum(inflation, most)
        .nan_to_num(_LEAST_INFLATION, torch.inf)
        .clamp(min=_LEAST_INFLATION)
    )


_LEAST_INFLATION = 1e-250
# Radii of constant margins are looked for between powers of two that no deployment reaches.
_LOGARITHMS, _BISECTIONS = 200.0, 50


def _root(value: Tensor, size: Tensor, m: Tensor) -> Tensor:
    """The closed form of margins `value` with gradients of norm `size`; 0 where there is none."""
    radius = 2 * value / (size + (size.square() + 2 * m * value).sqrt())
    return radius.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
