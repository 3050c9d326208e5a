"""The radius that a margin certifies from any point, and points with their margins.

Let f be a margin with `Hess f >= -m I`, x = x0 + u any point, and f and g the value and gradient
there. Then `f(x') >= f + g.(x' - x) - m/2 |x' - x|^2`, and the right-hand side is positive exactly
in a ball with centre x + g/m. So f > 0 at every x' closer to x0 than

    r(u) = (2 (f - g.u) - m |u|^2) / (|g + m u| + sqrt(|g|^2 + 2 m f)).

This is the dual bound of Singla & Feizi (2020, Thm 1) at the best multiplier, extended to points x
that do not minimise the dual: every u gives a valid radius, hence so does the best one, and the
solver needs no convergence test to be sound. u = 0 gives the closed form
`2 f / (|g| + sqrt(|g|^2 + 2 m f))`. At the nearest point of {f = 0}, if
`m |u| < |g|`, r(u) = |u|: the radius is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BISECTIONS = 50


def dual_radius(value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, m: Tensor) -> Tensor:
    """r(u) from f and the products g.g, g.u and u.u, all of the same shape.

    Negative or zero where the point proves nothing, NaN where no real radius exists. The formula is
    evaluated as it stands; `raycrt.margins.proofs.proof` accounts for its rounding.
    """
    across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
    reach = (gg + 2 * m * value).sqrt()
    return (2 * (value - gu) - m * uu) / (across + reach)


def largest_curvature(value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, wanted: Tensor) -> Tensor:
    """An unproved estimate of the largest m (n,) with r(u; m) >= `wanted`; 0 if there is none.

    r decreases in m: so does the lower bound on f, minimised over the sphere of radius `wanted`.
    """

    def lowest(m: Tensor) -> Tensor:
        across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
        return value - gu - m / 2 * (uu + wanted * wanted) - across * wanted

    # For larger m even a point with zero gradient does not prove the wanted radius.
    high = 2 * (value - gu).clamp(min=0) / (uu + wanted * wanted)
    low = torch.zeros_like(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = lowest(middle) >= 0
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(lowest(low) >= 0, low, 0.0)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Margins at points with coordinates `u` (n, d).

    `value` (n,) and `gradient` g (n, d) have the type of the points. The products `gg`, `gu` and
    `uu` (n,), whose sums may cancel, are float64, as is the `radius` (n,) that each point
    certifies; 0 where it is not known yet.
    """

    u: Tensor
    value: Tensor
    gradient: Tensor
    gg: Tensor
    gu: Tensor
    uu: Tensor
    radius: Tensor

    @staticmethod
    def at(u: Tensor, value: Tensor, gradient: Tensor) -> Points:
        """Points at `u` whose radius is not known yet."""
        gg, gu, uu = products(gradient, u)
        radius = torch.zeros_like(gg)
        return Points(u=u, value=value, gradient=gradient, gg=gg, gu=gu, uu=uu, radius=radius)

    def estimate(self, m: Tensor) -> Tensor:
        """Estimated radii that the points certify for margins of curvature m, ignoring rounding."""
        found = dual_radius(self.value.double(), self.gg, self.gu, self.uu, m)
        return found.nan_to_num(0.0, 0.0, 0.0)

    def take(self, rows: Tensor) -> Points:
        """The points with indices `rows`."""
        return Points(**{name: part.index_select(0, rows) for name, part in vars(self).items()})

    def without_radius(self) -> Points:
        return replace(self, radius=torch.zeros_like(self.radius))

    def copied(self) -> Points:
        return Points(**{name: part.clone() for name, part in vars(self).items()})

    def write(self, rows: Tensor, points: Points) -> None:
        """Replace the points with indices `rows` by `points`."""
        for name, part in vars(self).items():
            part[rows] = getattr(points, name)

    def where_better(self, others: Points) -> Points:
        """Row by row, the point of larger radius from these and `others`; these where equal."""
        better = others.radius > self.radius
        if better.all():
            return others
        rows = better.nonzero()[:, 0]
        best = self.copied()
        best.write(rows, others.take(rows))
        return best


def products(gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g.g, g.u and u.u (n,) in float64."""
    g, u = gradient.double(), u.double()
    return dot(g, g), dot(g, u), dot(u, u)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
