"""The last step of every proof: a radius from numbers, less all that rounding can have added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raycrt.bounds.rounding import ErrorModel, Slack
from raycrt.margins.curvature_matrix import Bending
from raycrt.margins.radius import dual_radius

EPS = torch.finfo(torch.float64).eps
_SMALLEST = 1e-280
# Bounds of lengths are about 1e-19 times the root of the width where float32 squares underflow.
_FLAT = 1e-16
# Stored radii are rounded down by this, relatively, so that a checker's own rounding fits below it.
ROUND_DOWN = 1 - 5e-10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """n margins of `label` against `target` as they were measured at points x0 + u, `length` (n,)
    bounding |x0|.

    The margins there are off `value` (n,) by at most `off_value` and what the classes' offsets add,
    and their gradients off a vector g by `off_gradient`. The products g.g `gg`, g.u `gu` and u.u
    `uu`, like all that is given in float64, are off by no more than `share` of the product of the
    lengths.
    """

    label: Tensor
    target: Tensor
    length: Tensor
    value: Tensor
    off_value: Tensor
    off_gradient: Tensor
    gg: Tensor
    gu: Tensor
    uu: Tensor
    share: float

    def take(self, rows: Tensor) -> Measured:
        parts = {name: part[rows] for name, part in vars(self).items() if name != "share"}
        return Measured(**parts, share=self.share)


@dataclass(frozen=True, kw_only=True)
class Prover:
    """Radii of margins of one network, as theorems about its stored weights in exact arithmetic.

    `errors` bounds the rounding of values and gradients, whatever type these have. With `deployed`,
    the type of a deployment's numbers, its arithmetic's error on the whole ball is taken off
    the margins too: the theorem is then about what the deployment computes.
    """

    errors: ErrorModel
    deployed: torch.dtype | None = None

    @cached_property
    def offsets(self) -> Tensor:
        """`ErrorModel.offsets` of float64."""
        return self.errors.offsets(torch.float64)

    @cached_property
    def offsets_deployed(self) -> Tensor:
        """`ErrorModel.offsets` of the deployment's numbers."""
        assert self.deployed is not None
        return self.errors.offsets(self.deployed)

    def closed_forms(
        self,
        label: Tensor,
        length: Tensor,
        value: Tensor,
        size: Tensor,
        m: Tensor,
        slack: Slack,
    ) -> Tensor:
        """Proved radii (n, classes) of the margins of `label` (n,) from the images themselves.

        `length` (n, 1) bounds |x0| and `size` the exact gradients' lengths: the closed form falls
        with |g| and grows with f, so bounds of both give a bound of it. A gradient that may be zero
        as far as its square in float32 tells proves nothing.
        """
        off = self.errors.margin(length, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value - off - 2 * EPS * value.abs()
        radius = _root(lowered, size, m)
        if self.deployed is not None:
            # Every input of the ball that is claimed has at most this length.
            lowered = lowered - self._off_deployed(label, length + radius)
            radius = _root(lowered, size, m)
        return torch.where(size > _FLAT, radius * ROUND_DOWN, 0.0)

    def constants(self, label: Tensor, length: Tensor, value: Tensor, slack: Slack) -> Tensor:
        """Proved radii (n, classes) of margins that do not depend on the input, infinite `value`
        included: infinite, or what the deployment's arithmetic leaves of that; 0 where the sign is
        not known. Arguments as of `closed_forms`.
        """
        off = self.errors.margin(length, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value * (1 - 4 * EPS) - off
        if self.deployed is None:
            return torch.where(lowered > 0, torch.inf, 0.0)
        # The logarithm of a radius at whose end the deployment's error stays below the margin.
        low, high = torch.full_like(lowered, -_LOGARITHMS), torch.full_like(lowered, _LOGARITHMS)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = lowered > self._off_deployed(label, length + middle.exp2())
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        radius = low.exp2()
        fits = lowered > self._off_deployed(label, length + radius)
        return torch.where(fits, radius * ROUND_DOWN, 0.0)

    def _off_deployed(self, label: Tensor, length: Tensor) -> Tensor:
        """Bounds (n, classes) of the deployment's errors in margins of `label` (n,) at inputs of
        `length` (n, classes)."""
        assert self.deployed is not None
        return self.errors.margin(length, self.deployed) + _rows(self.offsets_deployed, label)

    def at_points(self, at: Measured, m: Tensor) -> Tensor:
        """`dual_radius` (n,) of margins of curvature m, less everything that is not known exactly;
        >= 0.

        A gradient that is off by e costs `e |x' - x| <= e^2 / (2 b) + b |x' - x|^2 / 2` for any
        b > 0: the margin is lowered by the first term and bends by b more. Where the radius is the
        distance to the boundary, bending more changes nothing, and the cost is of second order.
        """
        value, gg, gu, uu, share = at.value, at.gg, at.gu, at.uu, at.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        optimistic = dual_radius(value, gg, gu, uu, m).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        bend = _cheapest_bend(optimistic, gg, gu, uu, m, at.off_gradient)
        m = (m + bend) * (1 + 2 * EPS)
        known = value - at.off_value - at.off_gradient * (at.off_gradient / bend) * (0.5 + EPS)
        known = known - _rows(self.offsets, at.label, at.target)
        if self.deployed is not None:
            known = known - _rows(self.offsets_deployed, at.label, at.target)
            known = known - self.errors.margin(at.length + optimistic, self.deployed)
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

    def by_matrix(self, at: Measured, bending: Bending) -> Tensor:
        """`at_points` by curvature as a matrix: radii (n,) >= 0.

        With `h = g + lambda u` and any b > 0 and lambda above the pole,

            r^2 = |u|^2 + (2 f - e^2 / b - h^T ((lambda - b) I - P)^-1 h) / lambda,

        f and its gradient off by nothing and by e. All of it is rounded to the safe side.
        """
        value, gg, gu, uu, share = at.value, at.gg, at.gu, at.uu, at.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        optimistic = dual_radius(value, gg, gu, uu, bending.largest).nan_to_num(0.0, 0.0, 0.0)
        optimistic = optimistic.clamp(min=0)
        steep = gg.sqrt() + bending.largest * uu.sqrt()
        start = torch.where(optimistic > 0, steep / optimistic, steep.square() / value.abs())
        lam, square = bending.multiplier(value, gg, gu, uu, start)
        # The point lies no further from the ball's end than `square` says, and what a multiplier
        # has to spare above the pole may be bent away.
        spare = (lam - bending.largest) / 2
        bend = (at.off_gradient / square.clamp(min=0).sqrt()).nan_to_num(torch.inf)
        least = at.off_gradient / (optimistic + shift)
        bend = torch.minimum(bend, torch.maximum(spare, least)).clamp(min=_LEAST_BEND)
        lam = torch.where(bend <= spare, lam, lam + bend)
        known = value - at.off_value - at.off_gradient * (at.off_gradient / bend) * (0.5 + EPS)
        known = known - _rows(self.offsets, at.label, at.target)
        longest = size + lam * shift
        off = 2 * share * longest
        hh = (gg + 2 * lam * gu + lam * lam * uu).clamp(min=0) + 2 * share * longest.square()
        spent = bending.spent(lam, bend, hh, off)

        def reach(known: Tensor) -> Tensor:
            lowered = 2 * (known - share * (value.abs() + known.abs()))
            square = uu * (1 - share) + (lowered - spent) / lam
            square = square - 8 * EPS * (uu + (lowered.abs() + spent) / lam)
            return square.clamp(min=0).sqrt().nan_to_num(0.0, 0.0, 0.0)

        radius = reach(known)
        if self.deployed is not None:
            below = known - _rows(self.offsets_deployed, at.label, at.target)
            below = below - self.errors.margin(at.length + radius * (1 + share), self.deployed)
            radius = torch.minimum(radius, reach(below))
        return torch.where(gg > _SMALLEST, radius * ROUND_DOWN, 0.0).nan_to_num(0.0, 0.0, 0.0)


def _rows(table: Tensor, *numbers: Tensor) -> Tensor:
    return table.to(numbers[0].device)[numbers]


def _cheapest_bend(
    radius: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, m: Tensor, off_gradient: Tensor
) -> Tensor:
    """About the b > 0 (n,) at which gradients that are off by `off_gradient` cost least.

    That is `off_gradient / |x' - x|` for the x' at which the ball of the given radius ends, but not
    so much that a point on the boundary no longer proves its own distance. Any b is sound.
    """
    across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
    tangent = radius.square() + uu + 2 * radius * (gu + m * uu) / across
    bend = off_gradient / tangent.clamp(min=0).sqrt()
    spare = gg.sqrt() / radius - m
    most = torch.where(spare > 0, spare / 2, torch.inf)
    return torch.minimum(bend, most).nan_to_num(_LEAST_BEND, torch.inf).clamp(min=_LEAST_BEND)


_LEAST_BEND = 1e-250
# Radii of constant margins are looked for between powers of two that no deployment reaches.
_LOGARITHMS, _BISECTIONS = 200.0, 50


def _root(value: Tensor, size: Tensor, m: Tensor) -> Tensor:
    """The closed form of margins `value` with gradients of length `size`; 0 where there is none."""
    radius = 2 * value / (size + (size.square() + 2 * m * value).sqrt())
    return radius.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
