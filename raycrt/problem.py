"""A batch of margins as the solver meets it: near the solution in few coordinates, then proved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt import dual
from raycrt.coordinates import Coordinates
from raycrt.dual import Points
from raycrt.network import Network
from raycrt.proof import Prover


@dataclass(frozen=True, kw_only=True)
class Problem:
    """k margins with the cotangents `direction` (k, classes) around images x (k, features).

    `x`, the bounds `length` (k,) of |x| and the proved curvature `m` (k,) are float64; z_1 at the
    images, `first` (k, width), and `direction` have the type of `fast`.
    """

    coordinates: Coordinates
    fast: Network
    exact: Network
    prover: Prover
    x: Tensor
    length: Tensor
    first: Tensor
    direction: Tensor
    m: Tensor

    def start(self) -> Points:
        """The images themselves, in the solver's coordinates."""
        rows = torch.arange(len(self.m), device=self.m.device)
        return self.near(rows, self.first.new_zeros(len(rows), self.coordinates.size))

    def near(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at the coordinates w (n, size): estimates in the solver's type."""
        value, above = self._above(rows, self.coordinates.image(w))
        gradient = self.coordinates.pull(above)
        gg, gu, uu = (
            torch.linalg.vecdot(*p) for p in ((gradient, gradient), (gradient, w), (w, w))
        )
        radius = dual.radius(value, gg, gu, uu, self.m[rows].to(w.dtype))
        return Points(u=w, value=value, gradient=gradient, radius=radius.nan_to_num(0.0, 0.0, 0.0))

    def lifted(self, w: Tensor) -> Points:
        """All margins at the coordinates w (k, size), as points in pixels with whole gradients."""
        rows = torch.arange(len(w), device=w.device)
        value, above = self._above(rows, self.coordinates.image(w))
        gradient = self.fast.layers[0].transpose(above)
        return Points(
            u=self.coordinates.lift(w),
            value=value,
            gradient=gradient,
            radius=torch.zeros_like(self.m),
        )

    def proved(self, rows: Tensor, u: Tensor) -> Points:
        """The margins `rows` at points u (n, features) rounded to float16, proved in float64."""
        point = u.half().double()
        trace = self.exact.trace(self.x[rows] + point)
        direction = self.direction[rows].double()
        value = torch.linalg.vecdot(trace.logits, direction)
        gradient = self.exact.pull_back(trace.slopes, direction)
        radius = self.prover.at_points(self.length[rows], value, gradient, self.m[rows], point)
        return Points(
            u=point.to(u.dtype),
            value=value.to(u.dtype),
            gradient=gradient.to(u.dtype),
            radius=radius,
        )

    def _above(self, rows: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) of the margins and their gradients in z_1, where z_1 has `moved` so far."""
        whole = len(rows) == len(self.m)
        direction = self.direction if whole else self.direction[rows]
        trace = self.fast.trace_above(moved.add_(self.first if whole else self.first[rows]))
        value = torch.linalg.vecdot(trace.logits, direction)
        return value, self.fast.pull_back_above(trace.slopes, direction)
