"""Margins of (image, class) pairs evaluated at points: estimates in the solver's type, or proved
radii."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.rounding import root_upper, squares
from raycrt.bounds.spectral import SLACK
from raycrt.margins.first_layer import Directions, Space, Span
from raycrt.margins.images import Margins
from raycrt.margins.prepared import CotangentNorms, PreparedNetwork, pull_back
from raycrt.margins.proofs.proof import Measured
from raycrt.margins.proofs.radius import Points
from raycrt.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class MarginEvaluator:
    """k margins of a batch: of `image` (k,) against `target` (k,), with curvatures `m` (k,).

    `margins` holds all margins of the batch at its images; `label`, `image_norm`, `value` and the
    closed-form `radius` (k,) are those of the k margins.
    """

    prepared: PreparedNetwork
    margins: Margins
    image: Tensor
    label: Tensor
    target: Tensor
    image_norm: Tensor
    value: Tensor
    radius: Tensor
    m: Tensor

    @staticmethod
    def of(
        prepared: PreparedNetwork, margins: Margins, image: Tensor, target: Tensor, m: Tensor
    ) -> MarginEvaluator:
        """The margins of `image` (k,) against `target` (k,)."""
        return MarginEvaluator(
            prepared=prepared,
            margins=margins,
            image=image,
            label=margins.label[image],
            target=target,
            image_norm=margins.image_norm[image],
            value=margins.value[image, target],
            radius=margins.radius[image, target],
            m=m,
        )

    def start(self, enough: Tensor) -> Points:
        """The images themselves as points. Where the whole gradient is available and a finite
        radius is `enough` (k,), it is used for a tighter closed form."""
        prepared = self.prepared
        slopes = [slope.index_select(0, self.image) for slope in self.margins.slopes]
        cotangent = prepared.fast_readout.margin(self.label, self.target)
        first, norms = pull_back(prepared.fast, slopes, cotangent)
        gradient = (prepared.directions or prepared.space).pull(first)
        start = Points.at(torch.zeros_like(gradient), self.value.to(gradient.dtype), gradient)
        start.radius.copy_(self.radius)
        rows = torch.isfinite(enough).nonzero()[:, 0]
        whole = prepared.directions is None and prepared.backward is prepared.fast
        if whole and len(rows) > 0:
            there = replace(start.take(rows), value=self.value[rows])
            closer = self._radius(rows, there, norms.take(rows), least=enough[rows])
            start.radius[rows] = torch.maximum(start.radius[rows], closer)
        return start

    def estimate(self, rows: Tensor, w: Tensor) -> Points:
        """Estimates, in the solver's type, of the margins `rows` at w (n, size), given in the
        coordinates that the solver starts in."""
        where = self.prepared.directions or self.prepared.space
        value, first = self._estimated(rows, where, w)
        found = Points.at(w, value, where.pull(first))
        found.radius.copy_(found.estimate(self._of(self.m, rows)))
        return found

    def in_space(self, rows: Tensor, points: Points) -> Points:
        """The margins `rows` at `points`, mapped from the coordinates of `directions` to the space;
        their radii are not known yet."""
        directions = self.prepared.directions
        assert directions is not None
        value, first = self._estimated(rows, directions, points.u)
        return Points.at(directions.lift(points.u), value, self.prepared.space.pull(first))

    def prove(self, rows: Tensor, w: Tensor) -> Points:
        """The margins `rows` at points near w (n, size), with radii proved both at these points
        and at every point that they are rounded to."""
        prepared = self.prepared
        w = prepared.space.rounded(w)
        u = w.double()
        value, first, norms = self._evaluated(rows, u, prepared.backward)
        gradient = prepared.space.pull(first)
        found = Points.at(u, value, gradient)
        radius = self._radius(rows, found, norms)
        return replace(
            found, u=w, value=value.to(w.dtype), gradient=gradient.to(w.dtype), radius=radius
        )

    def steep(self, points: Points) -> Tensor:
        """Mask (k,) of margins for which rounding `points` to float16 would cost more of the radius
        than is tolerated: near the pole of the dual, a gradient error costs to first order instead
        of second."""
        space = self.prepared.space
        if not isinstance(space, Span):
            return torch.zeros_like(self.label, dtype=torch.bool)
        curvature = self.prepared.curvature_both[self.label, self.target] + self.m
        changed = curvature * space.rounding(points.uu.sqrt())
        spare = (points.gg.sqrt() / points.uu.sqrt() - self.m).clamp(min=0)
        tolerated = self.prepared.tolerances.rounded
        return changed.square() > 2 * spare * tolerated * (points.gg * points.uu).sqrt()

    def prove_as_kept(self, rows: Tensor, point: Tensor) -> Tensor:
        """Radii (n,) that the stored points (n, features) prove for the margins `rows`, in float64.

        They exceed those of `prove` where rounding points and gradients costs much.
        """
        found, norms = self._as_kept(rows, point)
        return self._radius(rows, found, norms, as_kept=True)

    def measure_as_kept(self, point: Tensor) -> Measured:
        """All margins at the stored points (k, features), in float64: the measurements that prove
        their radii for any curvature."""
        rows = torch.arange(len(self.label), device=self.label.device)
        found, norms = self._as_kept(rows, point)
        return self._measured(rows, found, norms, as_kept=True)

    def _as_kept(self, rows: Tensor, point: Tensor) -> tuple[Points, CotangentNorms]:
        space, point = self.prepared.space, point.double()
        u = space.coordinates(point)
        value, first, norms = self._evaluated(rows, u, self.prepared.exact)
        return replace(Points.at(u, value, space.pull(first)), uu=squares(point)), norms

    def _radius(
        self,
        rows: Tensor,
        points: Points,
        norms: CotangentNorms,
        *,
        as_kept: bool = False,
        least: Tensor | None = None,
    ) -> Tensor:
        """Radii (n,) that `points` prove and, unless `as_kept`, every point that they are rounded
        to proves too. Radii below `least` (n,) need not be the best that can be proved."""
        measured = self._measured(rows, points, norms, as_kept=as_kept)
        return self.prepared.curvature.radius(points, measured, self._of(self.m, rows), least)

    def _measured(
        self, rows: Tensor, points: Points, norms: CotangentNorms, *, as_kept: bool
    ) -> Measured:
        prepared, space = self.prepared, self.prepared.space
        label, target = self._of(self.label, rows), self._of(self.target, rows)
        image_norm = self._of(self.image_norm, rows)
        shift = root_upper(points.uu, prepared.exact.features)
        point_norm = (image_norm + shift) * SLACK
        value_error = prepared.tables.margin(point_norm)
        dtype = points.gradient.dtype
        gradient_error = prepared.gradient_error(norms, label, target, point_norm, dtype)
        if isinstance(space, Span) and not as_kept:
            # From u to the stored point the gradient changes by at most curvature * distance.
            rounding = space.rounding(shift)
            curvature = prepared.curvature_both[label, target] + self._of(self.m, rows)
            value_error = value_error + curvature * rounding**2
            gradient_error = gradient_error + curvature * rounding
        return Measured(
            label=label,
            target=target,
            image_norm=image_norm,
            point_norm=point_norm,
            value=points.value,
            value_error=value_error,
            gradient_error=gradient_error,
            gg=points.gg,
            gu=points.gu,
            uu=points.uu,
            share=prepared.tables.slack.share,
        )

    def _estimated(
        self, rows: Tensor, where: Directions | Space, w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Estimates of the margins' values (n,) and of their gradients in z_1 (n, width) at
        coordinates w (n, size)."""
        prepared = self.prepared
        image, label, target = self._pairs(rows)
        z = where.onto(_rows(self.margins.first_fast, image), w)
        values = prepared.fast_readout.margin_offset(label, target)
        for part, own, other, value in _in_cache(z, label, target, values):
            hidden, slopes = prepared.fast.hidden(part)
            cotangent = prepared.fast_readout.margin(own, other)
            value += hidden.mul_(cotangent).sum(1)
            prepared.fast.pull_back_hidden(slopes, cotangent, out=part)
        return values, z

    def _evaluated(
        self, rows: Tensor, u: Tensor, backward: Network
    ) -> tuple[Tensor, Tensor, CotangentNorms]:
        """The margins' values (n,) in float64 at coordinates u (n, size), their gradients in z_1
        (n, width) in the type of `backward`, and the cotangent norms of the backward pass."""
        prepared, dtype = self.prepared, backward.dtype
        exact = backward is prepared.exact
        readout = prepared.exact_readout if exact else prepared.fast_readout
        image, label, target = self._pairs(rows)
        z = prepared.space.onto(_rows(self.margins.first, image), u)
        values = prepared.exact_readout.margin_offset(label, target)
        gradients = torch.empty_like(z, dtype=dtype)
        norms = []
        for part, own, other, value, gradient in _in_cache(z, label, target, values, gradients):
            hidden, slopes = prepared.exact.hidden(part, dtype)
            value += hidden.mul_(prepared.exact_readout.margin(own, other)).sum(1)
            cotangent = readout.margin(own, other)
            norms.append(pull_back(backward, slopes, cotangent, out=gradient)[1])
        return values, gradients, CotangentNorms.concatenate(norms)

    def _pairs(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._of(self.image, rows), self._of(self.label, rows), self._of(self.target, rows)

    def _of(self, values: Tensor, rows: Tensor) -> Tensor:
        return values if len(rows) == len(values) else values.index_select(0, rows)


def _rows(values: Tensor, image: Tensor) -> Tensor:
    """The rows `image` (k,) of values (n, width); no copy is made where these are all rows."""
    if len(image) == len(values) and torch.equal(image, torch.arange(len(values)).to(image)):
        return values
    return values.index_select(0, image)


def _in_cache(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of a few rows of all `parts` (z_1 first), so that intermediate results stay in the
    processor's cache."""
    z = parts[0]
    rows = max(1, _BYTES_IN_CACHE * torch.get_num_threads() // (z.shape[1] * z.element_size()))
    yield from zip(*(part.split(rows) for part in parts), strict=True)


# Bytes per thread that one chunk of z_1 may take: about half of a core's cache.
_BYTES_IN_CACHE = 2**19
