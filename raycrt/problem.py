"""A batch of margins as the solver meets it: near the solution in few coordinates, then proved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt import dual
from raycrt.coordinates import Coordinates
from raycrt.dual import Points
from raycrt.network import Network, Readout
from raycrt.proof import Prover
from raycrt.rounding import Bounds
from raycrt.span import Space


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The k margins of `label` against `target` (k,) around the images x number `image` (k,).

    At the images of a batch: z_1 `first` (n, width) in float64, `first_fast` and the `slopes` above
    it in the type of `fast`. For the margins: the bounds `length` (k,) of |x| and the proved
    curvature `m` (k,) in float64, `value` and closed form `radius` (k,) in the type of `fast`.
    """

    coordinates: Coordinates
    space: Space
    fast: Network
    exact: Network
    fast_readout: Readout
    exact_readout: Readout
    prover: Prover
    bounds: Bounds
    image: Tensor
    label: Tensor
    target: Tensor
    length: Tensor
    first: Tensor
    first_fast: Tensor
    slopes: tuple[Tensor, ...]
    value: Tensor
    radius: Tensor
    m: Tensor

    def start(self) -> Points:
        """The images themselves, in the solver's coordinates."""
        cotangent = self.fast_readout.margin(self.label, self.target)
        slopes = [slope.index_select(0, self.image) for slope in self.slopes]
        gradient = self.coordinates.pull(self.fast.pull_back_hidden(slopes, cotangent))
        w = gradient.new_zeros(gradient.shape)
        return Points(u=w, point=w, value=self.value, gradient=gradient, radius=self.radius)

    def near(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at the coordinates w (n, size): estimates in the solver's type."""
        value, above = self._above(rows, self.coordinates.image(w))
        gradient = self.coordinates.pull(above)
        gg, gu, uu = (
            torch.linalg.vecdot(*p) for p in ((gradient, gradient), (gradient, w), (w, w))
        )
        radius = dual.radius(value, gg, gu, uu, self._of(self.m, rows).to(w.dtype)).nan_to_num(
            0.0, 0.0, 0.0
        )
        return Points(u=w, point=w, value=value, gradient=gradient, radius=radius)

    def raised(self, w: Tensor) -> Tensor:
        """Points at the coordinates w (n, size) in those that they are proved in."""
        return self.space.start(self.coordinates, w)

    def lifted(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at the coordinates w (n, size), raised, with whole gradients."""
        value, above = self._above(rows, self.coordinates.image(w))
        u = self.raised(w)
        return Points(
            u=u,
            point=u.new_zeros(len(w), self.exact.features, dtype=torch.half),
            value=value,
            gradient=self.space.pull(above),
            radius=self.m.new_zeros(len(w)),
        )

    def proved(self, rows: Tensor, u: Tensor) -> Points:
        """The margins `rows` at points near u (n, size) of float16, proved in float64."""
        point = self.space.point(u)
        whole = point.double()
        exact = self.space.coordinates(whole)
        moved = self.space.image(exact)
        value, above = self._margin(self.exact, self.exact_readout, self.first, rows, moved)
        gradient = self.space.pull(above)
        radius = self.prover.at_points(
            self._of(self.length, rows),
            value,
            gradient,
            self._of(self.m, rows),
            exact,
            uu=torch.linalg.vector_norm(whole, dim=1).square(),
            bounds=self.bounds,
        )
        return Points(
            u=exact.to(u.dtype),
            point=point,
            value=value.to(u.dtype),
            gradient=gradient.to(u.dtype),
            radius=radius,
        )

    def _above(self, rows: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of the values (n,) of the margins and of their gradients in z_1 (n, width),
        where z_1 has `moved` (n, width) since the images."""
        return self._margin(self.fast, self.fast_readout, self.first_fast, rows, moved)

    def _margin(
        self, network: Network, readout: Readout, first: Tensor, rows: Tensor, moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with z_1 at the images, `first`; the gradients take the place of `moved`.

        A few rows at a time, so that what is made of them stays in the processor's cache.
        """
        of = [part.index_select(0, rows) for part in (self.image, self.label, self.target)]
        values = readout.margin_offset(of[1], of[2])
        cache = _BYTES_IN_CACHE * torch.get_num_threads()
        chunk = max(1, cache // (moved.shape[1] * moved.element_size()))
        parts = (part.split(chunk) for part in (*of, moved, values))
        for image, label, target, z, value in zip(*parts, strict=True):
            hidden, slopes = network.hidden(z.add_(first.index_select(0, image)))
            cotangent = readout.margin(label, target)
            value += hidden.mul_(cotangent).sum(1)
            network.pull_back_hidden(slopes, cotangent, out=z)
        return values, moved

    def _of(self, values: Tensor, rows: Tensor) -> Tensor:
        return values if len(rows) == len(values) else values.index_select(0, rows)


# What z_1 of the rows that are worked on at a time may take: about half of a core's cache.
_BYTES_IN_CACHE = 2**19
