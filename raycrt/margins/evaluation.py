"""A batch of margins as the solver meets it: estimated in its own type, then proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.rounding import root_upper, squares
from raycrt.margins.first_layer import Directions, Space, Span
from raycrt.margins.prepared import Arithmetic, Lengths, pull_back
from raycrt.margins.proof import Measured
from raycrt.margins.radius import Points
from raycrt.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The k margins of `label` against `target` (k,) around the images x number `image` (k,).

    At the images of a batch: z_1 `first` (n, width) in float64, `first_fast` and the `slopes` above
    it in the solver's type. For the margins, all in float64: the bounds `length` (k,) of |x|, the
    `value` and the proved closed form `radius` (k,), and the proved curvature `m` (k,).
    """

    by: Arithmetic
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

    def start(self, enough: Tensor) -> Points:
        """The images themselves. Where the whole gradient is at hand and a finite radius is
        `enough` (k,), it is taken for a closer closed form."""
        by = self.by
        slopes = [slope.index_select(0, self.image) for slope in self.slopes]
        above, way = pull_back(by.fast, slopes, by.fast_readout.margin(self.label, self.target))
        gradient = (by.directions or by.space).pull(above)
        start = Points.at(torch.zeros_like(gradient), self.value.to(gradient.dtype), gradient)
        start.radius.copy_(self.radius)
        rows = torch.isfinite(enough).nonzero()[:, 0]
        if by.directions is None and by.backward is by.fast and len(rows) > 0:
            there = replace(start.take(rows), value=self.value[rows])
            closer = self._radius(rows, there, way.take(rows), least=enough[rows])
            start.radius[rows] = torch.maximum(start.radius[rows], closer)
        return start

    def near(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at the coordinates w (n, size) that the solver starts in: estimates in
        its type."""
        where = self.by.directions or self.by.space
        value, above = self._estimated(rows, where, w)
        found = Points.at(w, value, where.pull(above))
        found.radius.copy_(found.estimate(self._of(self.m, rows)))
        return found

    def whole(self, rows: Tensor, points: Points) -> Points:
        """The margins `rows` at `points` of the directions, with their gradients in the space; not
        judged yet."""
        directions = self.by.directions
        assert directions is not None
        value, above = self._estimated(rows, directions, points.u)
        return Points.at(directions.lift(points.u), value, self.by.space.pull(above))

    def proved(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at points near w (n, size), with radii that are proved there and at
        every point that these are rounded to."""
        by = self.by
        w = by.space.rounded(w)
        u = w.double()
        value, above, way = self._evaluated(rows, u, by.backward)
        gradient = by.space.pull(above)
        found = Points.at(u, value, gradient)
        radius = self._radius(rows, found, way)
        return replace(
            found, u=w, value=value.to(w.dtype), gradient=gradient.to(w.dtype), radius=radius
        )

    def steep(self, points: Points) -> Tensor:
        """Where (k,) rounding the `points` of all margins to float16 would cost more than
        `_ROUNDED` of their radius: next to the pole changes of gradients count as they are, not
        their squares."""
        space = self.by.space
        if not isinstance(space, Span):
            return torch.zeros_like(self.label, dtype=torch.bool)
        bends = self.by.turning[self.label, self.target] + self.m
        changed = bends * space.moved(points.uu.sqrt())
        spare = (points.gg.sqrt() / points.uu.sqrt() - self.m).clamp(min=0)
        return changed.square() > 2 * spare * _ROUNDED * (points.gg * points.uu).sqrt()

    def proved_as_kept(self, rows: Tensor, point: Tensor) -> Tensor:
        """The radii (n,) that the points (n, features), as they are kept, prove of the margins
        `rows`, all in float64: more than `proved` where rounding points and gradients costs much.
        """
        space, point = self.by.space, point.double()
        u = space.coordinates(point)
        value, above, way = self._evaluated(rows, u, self.by.exact)
        found = replace(Points.at(u, value, space.pull(above)), uu=squares(point))
        return self._radius(rows, found, way, as_kept=True)

    def _radius(
        self,
        rows: Tensor,
        points: Points,
        way: Lengths,
        *,
        as_kept: bool = False,
        least: Tensor | None = None,
    ) -> Tensor:
        """Radii (n,) that `points` prove; and, if they are not given `as_kept`, every point that
        they are rounded to. Below `least` (n,) they need not be the best."""
        by, space = self.by, self.by.space
        label, target, m = (self._of(part, rows) for part in (self.label, self.target, self.m))
        length = self._of(self.length, rows)
        shift = root_upper(points.uu, by.exact.features)
        reach = (length + shift) * (1 + 1e-9)
        off_value = by.bounds.margin(reach)
        dtype = points.gradient.dtype
        off_gradient = by.off_gradient(way, label, target, reach, dtype)
        if isinstance(space, Span) and not as_kept:
            # How far the point that is kept lies from u; between them the margin bends no more.
            moved, bends = space.moved(shift), by.turning[label, target] + m
            off_value, off_gradient = off_value + bends * moved**2, off_gradient + bends * moved
        measured = Measured(
            label=label,
            target=target,
            length=length,
            value=points.value,
            off_value=off_value,
            off_gradient=off_gradient,
            gg=points.gg,
            gu=points.gu,
            uu=points.uu,
            share=by.bounds.slack.share,
        )
        radius = by.prover.at_points(measured, m)
        if by.matrices is None:
            return radius
        # Where the point's tangent plane is further away than what m proves.
        plane = (points.value - points.gu) / points.gg.sqrt()
        able = plane > radius * (1 + _TIGHT)
        if least is not None:
            able &= (radius < least) & (least < plane)
        short = able.nonzero()[:, 0]
        if len(short) == 0:
            return radius
        bending = by.matrices.bending(
            label[short], target[short], points.gradient[short], points.u[short]
        )
        # A checker chooses multipliers of its own: what costs it little must cost more here.
        least = _CHECKED * by.bounds.gradient(reach[short])
        measured = measured.take(short)
        off_gradient = torch.maximum(measured.off_gradient, least)
        closer = by.prover.by_matrix(replace(measured, off_gradient=off_gradient), bending)
        radius[short] = torch.maximum(radius[short], closer)
        return radius

    def _estimated(
        self, rows: Tensor, where: Directions | Space, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimates, at coordinates w (n, size), of the values (n,) of the margins and of their
        gradients in z_1 (n, width)."""
        by = self.by
        image, label, target = self._pairs(rows)
        z = where.onto(_rows(self.first_fast, image), w)
        values = by.fast_readout.margin_offset(label, target)
        for part, own, other, value in _in_cache(z, label, target, values):
            hidden, slopes = by.fast.hidden(part)
            cotangent = by.fast_readout.margin(own, other)
            value += hidden.mul_(cotangent).sum(1)
            by.fast.pull_back_hidden(slopes, cotangent, out=part)
        return values, z

    def _evaluated(
        self, rows: Tensor, u: Tensor, backward: Network
    ) -> tuple[Tensor, Tensor, Lengths]:
        """At coordinates u (n, size), the values (n,) of the margins in float64, and in the type of
        `backward` their gradients in z_1 (n, width), with the lengths on their way."""
        by, dtype = self.by, backward.dtype
        readout = by.exact_readout if backward is by.exact else by.fast_readout
        image, label, target = self._pairs(rows)
        z = by.space.onto(_rows(self.first, image), u)
        values = by.exact_readout.margin_offset(label, target)
        gradients = torch.empty_like(z, dtype=dtype)
        ways = []
        for part, own, other, value, gradient in _in_cache(z, label, target, values, gradients):
            hidden, slopes = by.exact.hidden(part, dtype)
            value += hidden.mul_(by.exact_readout.margin(own, other)).sum(1)
            way = pull_back(backward, slopes, readout.margin(own, other), out=gradient)[1]
            ways.append(way)
        return values, gradients, Lengths.concatenate(ways)

    def _pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._of(self.image, rows), self._of(self.label, rows), self._of(self.target, rows)

    def _of(self, values: Tensor, rows: Tensor) -> Tensor:
        return values if len(rows) == len(values) else values.index_select(0, rows)


def _rows(values: Tensor, image: Tensor) -> Tensor:
    """The rows `image` (k,) of values (n, width); without a copy where that is all of them."""
    if len(image) == len(values) and torch.equal(image, torch.arange(len(values)).to(image)):
        return values
    return values.index_select(0, image)


def _in_cache(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows of z_1, the first, and the other parts at a time, so that what is made of them
    stays in the processor's cache."""
    z = parts[0]
    rows = max(1, _BYTES_IN_CACHE * torch.get_num_threads() // (z.shape[1] * z.element_size()))
    yield from zip(*(part.split(rows) for part in parts), strict=True)


# Radii this near, relatively, to the point's tangent plane are left as they are.
_TIGHT = 1e-5
_ROUNDED = 2e-6
# How many times a checker's bound of a gradient's error is counted with matrices.
_CHECKED = 4
# What z_1 of the rows that are worked on at a time may take: about half of a core's cache.
_BYTES_IN_CACHE = 2**19
