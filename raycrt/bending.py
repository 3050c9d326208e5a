"""How margins bend: along a few directions by amounts of their own, along all others by one.

Of a margin with `Hess f >= -P` it is known that

    P <= V diag(d) V^T + rest I,    V^T V <= (1 + skew) I,

so that, with `s = lambda - b - rest` above all `d (1 + skew)`, Woodbury's identity gives

    h^T ((lambda - b) I - P)^-1 h <= (|h|^2 + sum_i (V^T h)_i^2 d_i / (s - d_i (1 + skew))) / s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.spectral import EPS

# Multipliers stay this far, relatively, above the pole; they are looked for up to so many times
# what the number m asks for.
_NEXT_TO, _BEYOND, _LEAST = 1e-6, 8, 1e-150
_BISECTIONS = 12


@dataclass(frozen=True, kw_only=True)
class Bending:
    """n margins at points u with gradients g, in float64: V^T g `of_gradient` and V^T u `of_point`
    (n, k), the `sizes` d (1 + skew) (n, k), and the `rest` (n,)."""

    of_gradient: Tensor
    of_point: Tensor
    sizes: Tensor
    rest: Tensor

    @property
    def largest(self) -> Tensor:
        """Bounds (n,) of the largest eigenvalues."""
        return (self.sizes.amax(1) + self.rest) * (1 + 4 * EPS)

    def multiplier(
        self, value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """About the lambda (n,) that proves most, and the squared length of
        `(lambda I - P)^-1 (g + lambda u)` there: from the end of the ball to the point. No proof.

        It is the root of the quadratic bound's value where `|d|^2 lambda / 2` on top of it is
        lowest, looked for up to a few times `start` beyond the pole, or next to the pole.
        """
        a, b = self.of_gradient, self.of_point
        # What lies across all directions bends by the rest.
        gg, gu, uu = (
            whole - (x * y).sum(1) for whole, x, y in ((gg, a, a), (gu, a, b), (uu, b, b))
        )
        gg, uu = gg.clamp(min=0), uu.clamp(min=0)
        floor, pole = self.rest, self.largest
        curved = self.sizes + floor[:, None]
        half = curved / 2
        low = (pole * _NEXT_TO).clamp(min=_LEAST).log()
        high = torch.maximum(low, (start * _BEYOND).clamp(min=_LEAST).log())

        def at(above: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """lambda, y along the directions, 1 / (lambda - rest), and |h|^2 across them."""
            lam = pole + above.exp()
            y = torch.addcmul(a, lam[:, None], b).div_(lam[:, None] - curved)
            return lam, y, 1 / (lam - floor), gg + 2 * lam * gu + lam * lam * uu

        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            lam, y, free, across = at(middle)
            within = value - torch.linalg.vecdot(y, torch.addcmul(a, half, y))
            positive = within > free * (gg + lam * gu + floor * free * across / 2)
            low, high = torch.where(positive, low, middle), torch.where(positive, middle, high)
        lam, y, free, across = at(high)
        return lam, torch.linalg.vecdot(y, y) + free * free * across.clamp(min=0)

    def spent(self, lam: Tensor, bend: Tensor, hh: Tensor, off: Tensor) -> Tensor:
        """Bounds (n,) of `h^T (lambda I - P - bend I)^-1 h` for h = g + lambda u with |h|^2 <= `hh`
        whose products with the directions are off by `off` (n,); infinite beyond the pole."""
        left = (lam - bend) * (1 - 2 * EPS) - self.rest
        left = left - 4 * EPS * (lam + self.rest)
        ahead = torch.addcmul(self.of_gradient, lam[:, None], self.of_point).abs_()
        ahead += off[:, None]
        room = left[:, None] - self.sizes
        # The quotient first: products of small curvature and small gradients underflow.
        parts = (ahead * ahead * (self.sizes / room)).sum(1)
        spent = (hh + parts) / left * (1 + (self.sizes.shape[1] + 16) * EPS)
        return torch.where((room > 0).all(1), spent, torch.inf)
