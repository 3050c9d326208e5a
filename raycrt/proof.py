"""The last step of every proof: a radius from numbers, less all that rounding can have added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt import dual
from raycrt.rounding import Bounds, ErrorModel, Slack

EPS = torch.finfo(torch.float64).eps
_SMALLEST = 1e-280
# Stored radii are rounded down by this, relatively, so that a checker's own rounding fits below it.
ROUND_DOWN = 1 - 5e-10


@dataclass(frozen=True, kw_only=True)
class Prover:
    """Radii of margins of one network, as theorems about its stored weights in exact arithmetic.

    `errors` bounds the rounding of the float64 values and gradients it is given. With `deployed`,
    the type of a deployment's numbers, its arithmetic's error on the whole ball is taken off
    the margins too: the theorem is then about what the deployment computes.
    """

    errors: ErrorModel
    deployed: torch.dtype | None = None

    def closed_forms(
        self, length: Tensor, value: Tensor, size: Tensor, m: Tensor, slack: Slack
    ) -> Tensor:
        """Proved radii (n, classes) from the images themselves.

        `length` (n, 1) bounds |x0| and `size` the exact gradients' lengths: the closed form falls
        with |g| and grows with f, so bounds of both give a bound of it.
        """
        lowered = value - self.errors.margin(length, torch.float64, slack) - 2 * EPS * value.abs()
        radius = _root(lowered, size, m)
        if self.deployed is not None:
            # Every input of the ball that is claimed has at most this length.
            lowered = lowered - self.errors.margin(length + radius, self.deployed)
            radius = _root(lowered, size, m)
        return radius * ROUND_DOWN

    def at_points(
        self,
        length: Tensor,
        value: Tensor,
        gradient: Tensor,
        m: Tensor,
        u: Tensor,
        *,
        uu: Tensor,
        bounds: Bounds,
    ) -> Tensor:
        """`dual.radius` at points, less everything that rounding can have added; >= 0.

        `length` is |x0|; `gradient` and the points `u` (n, size) are given in coordinates that keep
        lengths but for `bounds.slack`, `uu` is the points' own |u|^2. The exact gradient g
        satisfies |g - computed| <= e, so the quadratic bound holds with the computed one if
        e |x' - x| is taken from the margin, for x' in the ball that is claimed. Second round: the
        claimed radius itself bounds that distance.
        """
        gg, gu = torch.linalg.vecdot(gradient, gradient), torch.linalg.vecdot(gradient, u)
        # Products of n terms, each off by at most this share of the product of the lengths.
        share = bounds.slack.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        reach = (length + shift) * (1 + 1e-9)
        off_value, off_gradient = bounds(reach)
        optimistic = dual.radius(value, gg, gu, uu, m).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        lowered = value - off_value - off_gradient * (optimistic + 2 * shift)
        lowered = lowered - share * (2 * value.abs() + 2 * size * shift + m * uu)
        if self.deployed is not None:
            lowered = lowered - self.errors.margin(length + optimistic, self.deployed)
        numerator = 2 * (lowered - gu) - m * uu
        # Both roots from above: what cancels in |g + m u| is added before the root is taken.
        across = gg + 2 * m * gu + m * m * uu + 2 * share * (size + m * shift).square()
        reach = gg * (1 + share) + 2 * m * value.clamp(min=0)
        radius = numerator / (across.clamp(min=0).sqrt() + reach.sqrt())
        # Where squares underflow, they say nothing.
        real = (gg * (1 - share) + 2 * m * lowered > 0) & (gg > _SMALLEST)
        radius = torch.minimum(radius, optimistic) * ROUND_DOWN
        return torch.where(real, radius, 0.0).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)


def _root(value: Tensor, size: Tensor, m: Tensor) -> Tensor:
    """The closed form of margins `value` with gradients of length `size`; 0 where there is none."""
    radius = 2 * value / (size + (size.square() + 2 * m * value).sqrt())
    return radius.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
