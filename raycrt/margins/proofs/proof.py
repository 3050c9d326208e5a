"""The last step of every proof: a radius from measured numbers, less all rounding errors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raycrt.bounds.rounding import FirstLayerError, RoundingErrors
from raycrt.margins.proofs.curvature_matrix import MatrixAtPoints
from raycrt.margins.proofs.radius import dual_radius

EPS = torch.finfo(torch.float64).eps
_SMALLEST = 1e-280
# Where float32 squares underflow, bounds on norms are about 1e-19 times the root of the width.
_FLAT = 1e-16
# Relative factor that rounds stored radii down, leaving room for a checker's own rounding.
ROUND_DOWN = 1 - 5e-10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of n margins of `label` against `target` at points x0 + u, in float64.

    `image_norm` (n,) bounds |x0|, and `point_norm` (n,) bounds |x0 + u|. The margins there differ
    from `value` (n,) by at most `value_error` plus the errors of the classes' offsets, and their
    gradients from a vector g by at most `gradient_error`. The products `gg` = g.g, `gu` = g.u and
    `uu` = u.u have errors of at most `share` times the product of the norms.
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
    """Proves radii of one network's margins: theorems about its stored weights in exact arithmetic.

    `errors` bounds the rounding of values and gradients in any type. If `deployed`, the type of a
    deployment's numbers, is given, the error of its arithmetic on the whole ball is subtracted from
    the margins as well, and the theorem holds for the function that the deployment computes.
    """

    errors: RoundingErrors
    deployed: torch.dtype | None = None

    @cached_property
    def offsets(self) -> Tensor:
        """`RoundingErrors.offsets` for float64."""
        return self.errors.offsets(torch.float64)

    @cached_property
    def offsets_deployed(self) -> Tensor:
        """`RoundingErrors.offsets` for the deployment's type."""
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

        `image_norm` (n, 1) bounds |x0|, and `size` bounds the norms of the exact gradients: the
        closed form decreases in |g| and increases in f, so bounds on both bound it. A gradient
        whose float32 square does not exclude zero proves nothing.
        """
        error = self.errors.margin(image_norm, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value - error - 2 * EPS * value.abs()
        radius = _root(lowered, size, m)
        if self.deployed is not None:
            # No input in the claimed ball has a larger norm.
            lowered = lowered - self.deployment_error(label, image_norm + radius)
            radius = _root(lowered, size, m)
        return torch.where(size > _FLAT, radius * ROUND_DOWN, 0.0)

    def constants(
        self, label: Tensor, image_norm: Tensor, value: Tensor, slack: FirstLayerError
    ) -> Tensor:
        """Proved radii (n, classes) of margins that do not depend on the input.

        Infinite, or as large as the errors of the deployment's arithmetic allow; 0 where the sign
        is not known. `value` may be infinite; arguments are those of `closed_forms`.
        """
        error = self.errors.margin(image_norm, torch.float64, slack) + _rows(self.offsets, label)
        lowered = value * (1 - 4 * EPS) - error
        if self.deployed is None:
            return torch.where(lowered > 0, torch.inf, 0.0)
        # Bisect for the log2 of a radius up to which the deployment's error stays below the margin.
        low, high = torch.full_like(lowered, -_LOGARITHMS), torch.full_like(lowered, _LOGARITHMS)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = lowered > self.deployment_error(label, image_norm + middle.exp2())
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        radius = low.exp2()
        fits = lowered > self.deployment_error(label, image_norm + radius)
        return torch.where(fits, radius * ROUND_DOWN, 0.0)

    def deployment_error(self, label: Tensor, input_norm: Tensor) -> Tensor:
        """Upper bounds (n, classes) on the deployment's errors in the margins of `label` (n,) at
        inputs of norm `input_norm` (n, classes)."""
        assert self.deployed is not None
        return self.errors.margin(input_norm, self.deployed) + _rows(self.offsets_deployed, label)

    def at_points(self, at: Measured, m: Tensor) -> Tensor:
        """`dual_radius` (n,) >= 0 of margins of curvature m, less all errors.

        A gradient error e costs `e |x' - x| <= e^2 / (2 b) + b |x' - x|^2 / 2` for any b > 0: the
        first term is subtracted from the margin and b is added to its curvature. Where the radius
        is the distance to the boundary, more curvature changes nothing, and the cost is of second
        order.
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
        # Bound both roots from above: add the cancellation error in |g + m u| before its root.
        across = gg + 2 * m * gu + m * m * uu + 2 * share * (size + m * shift).square()
        reach = gg * (1 + share) + 2 * m * (known + share * (value.abs() + known.abs()))
        radius = numerator / (across.clamp(min=0).sqrt() + reach.clamp(min=0).sqrt())
        # Squares that may have underflowed prove nothing.
        real = (gg * (1 - share) + 2 * m * lowered > 0) & (gg > _SMALLEST)
        radius = torch.minimum(radius, optimistic) * ROUND_DOWN
        return torch.where(real, radius, 0.0).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)

    def by_matrix(self, at: Measured, matrix: MatrixAtPoints) -> Tensor:
        """`at_points` with a matrix as curvature bound: radii (n,) >= 0.

        With `h = g + lambda u` and any b > 0 and lambda above the pole,

            r^2 = |u|^2 + (2 f - e^2 / b - h^T ((lambda - b) I - P)^-1 h) / lambda,

        where e is the gradient error. Every term is rounded to the safe side.
        """
        value, gg, gu, uu, share = at.value, at.gg, at.gu, at.uu, at.share
        size, shift = (gg * (1 + share)).sqrt(), (uu * (1 + share)).sqrt()
        optimistic = dual_radius(value, gg, gu, uu, matrix.largest).nan_to_num(0.0, 0.0, 0.0)
        optimistic = optimistic.clamp(min=0)
        steep = gg.sqrt() + matrix.largest * uu.sqrt()
        start = torch.where(optimistic > 0, steep / optimistic, steep.square() / value.abs())
        lam, square = matrix.multiplier(value, gg, gu, uu, start)
        # The squared distance of the point from the end of the ball is about `square`, and the
        # slack of the multiplier above the pole may be used for the inflation.
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
    """An estimate of the b > 0 (n,) at which gradient errors `gradient_error` cost least.

    That is `gradient_error / |x' - x|` for the x' where the ball of the given radius ends, capped
    so that a point on the boundary still proves its own distance. Any b is sound.
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
# Radii of constant margins are searched between powers of two that no deployment reaches.
_LOGARITHMS, _BISECTIONS = 200.0, 50


def _root(value: Tensor, size: Tensor, m: Tensor) -> Tensor:
    """The closed-form radius for margins `value` and gradient norms `size`; 0 if there is none."""
    radius = 2 * value / (size + (size.square() + 2 * m * value).sqrt())
    return radius.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
