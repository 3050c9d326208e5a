"""Radii raised by curvature that is proved on a ball around the image alone.

A ball just reaches beyond a stated radius that the row does not have yet, or to where the solver
met the decision boundary. What is proved on it holds for points and radii inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.error_tables import Bounds
from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.rounding import squares
from raycrt.certification.certificate import Margins, Witnesses, witness_points
from raycrt.margins.proof import ROUND_DOWN, Measured, Prover
from raycrt.margins.radius import largest_curvature
from raycrt.networks.network import Network, Readout

# The best points, float16, of margins (row, target) of given curvatures, until radii are enough.
Search = Callable[[Margins, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Balls:
    """The stated radii `at` (increasing, float64) of a network, in float64, and what proves them.

    `bounds` are those of points evaluated in pixels.
    """

    local: LocalCurvature
    at: Tensor
    exact: Network
    readout: Readout
    prover: Prover
    bounds: Bounds
    search: Search
    batch_size: int

    def raise_radii(
        self, margins: Margins, witnesses: Witnesses, region: Tensor, own: Tensor
    ) -> Witnesses:
        """Raise `margins.radius` by curvatures on balls, and set `region` (n,) where that pays.

        Every stated radius is decided as if it were alone: a row that does not exceed it by
        curvature that holds everywhere, nor by a larger ball, gets a ball for it, and keeps the one
        that proves most. A row's `own` radius (n,), if it is finite, stands in place of those that
        are stated.
        """
        start, kept = margins.radius.clone(), witnesses
        classes, radius = start.shape[1], start.amin(1)
        first, beyond = self._boundary(margins, witnesses)
        able = (radius > 0) & (radius * (1 + _GAIN) < beyond)
        able &= ~margins.constant.gather(1, first[:, None])[:, 0]
        tried = torch.full_like(radius, torch.inf)
        for stated in self._stated(own):
            ball = torch.minimum(stated * (1 + _BEYOND), beyond * (1 + _GAIN))
            best = margins.radius.amin(1)
            rows = able & torch.isfinite(stated) & (best <= stated) & (ball < tried)
            tried = torch.where(rows, ball, tried)
            trial, held = replace(margins, radius=start.clone()), torch.full_like(region, torch.inf)
            found = self._on_ball(trial, witnesses, held, first, rows, ball, best)
            better = trial.radius.amin(1) > best
            margins.radius[better], region[better] = trial.radius[better], held[better]
            kept = Witnesses.concatenate(
                [kept.take(~better[kept.row]), found.take(better[found.row])]
            )
        return kept.sorted(classes)

    def _stated(self, own: Tensor) -> Tensor:
        """The radii (k, n) that are to be decided, the largest first; infinite for none."""
        stated = self.at.to(own.device).flip(0)[:, None].expand(-1, len(own))
        stated = stated.masked_fill(torch.isfinite(own), torch.inf)
        return torch.cat([own[None], stated])

    def _boundary(self, margins: Margins, witnesses: Witnesses) -> tuple[Tensor, Tensor]:
        """The class of the smallest radius (n,), which decides how far a row can get, and the
        distance (n,) beyond which nothing is to be gained: where the solver met the boundary of
        that class; else infinite."""
        n, classes = margins.radius.shape
        rows, first = torch.arange(n, device=margins.radius.device), margins.radius.argmin(1)
        u = witness_points(witnesses, rows, first, n, classes)
        value, gradient = self._at(margins, rows, first, u)
        slope, shift = gradient.norm(dim=1), u.norm(dim=1)
        beyond = shift + value.clamp(min=0) / slope
        return first, torch.where(value <= _NEAR * slope * shift, beyond, torch.inf)

    def _on_ball(
        self,
        margins: Margins,
        witnesses: Witnesses,
        region: Tensor,
        first: Tensor,
        rows: Tensor,
        ball: Tensor,
        best: Tensor,
    ) -> Witnesses:
        """Raise the radii of the `rows` (n,) on a `ball` (n,) each: of the class `first`, and then
        of those below it where the row can exceed its `best` radius (n,)."""
        row = rows.nonzero()[:, 0]
        witnesses = self._on_balls(margins, witnesses, region, row, first[row], ball, ball)
        enough = margins.radius.gather(1, first[:, None])[:, 0]
        rows = rows & (enough > best)
        left = (margins.radius < enough[:, None]) & rows[:, None] & ~margins.constant
        row, target = left.nonzero().unbind(1)
        return self._on_balls(margins, witnesses, region, row, target, ball, enough)

    def _on_balls(
        self,
        margins: Margins,
        witnesses: Witnesses,
        region: Tensor,
        row: Tensor,
        target: Tensor,
        ball: Tensor,
        enough: Tensor,
    ) -> Witnesses:
        """Raise the radii of margins (row, target) on balls of radius `ball` (n,), to no more than
        `enough` (n,) where that is cheaper; the witnesses with the new ones in place of the old."""
        n, classes = margins.radius.shape
        for part in torch.stack([row, target], 1).split(self.batch_size):
            row, target = part.unbind(1)
            reach = ball[row]
            u = witness_points(witnesses, row, target, n, classes)
            value, gradient = self._at(margins, row, target, u)
            allowed = largest_curvature(value, gradient, u, enough[row] * (1 + _BEYOND))
            allowed = torch.where(u.norm(dim=1) < reach, allowed, 0.0)
            m = margins.m[row, target].clone()
            for i in row.unique().tolist():
                at = row == i
                proved = self.local(
                    margins.x[i],
                    float(ball[i]),
                    int(margins.label[i]),
                    target[at],
                    enough=allowed[at],
                )
                m[at] = torch.minimum(m[at], proved)
            open_ = ((m > allowed) & (m < margins.m[row, target])).nonzero()[:, 0]
            if len(open_):
                found = self.search(
                    margins, row[open_], target[open_], m[open_], enough[row][open_] * (1 + 1e-5)
                ).double()
                longest = reach[open_] * (1 - _GAIN)
                shrink = (longest / found.norm(dim=1).clamp(min=1e-300)).clamp(max=1)
                u[open_] = (found * shrink[:, None]).half().double()
                value, gradient = self._at(margins, row, target, u)
            length = (margins.length[row] + u.norm(dim=1)) * (1 + 1e-9)
            measured = Measured(
                label=margins.label[row],
                target=target,
                length=margins.length[row],
                value=value,
                off_value=self.bounds.margin(length),
                off_gradient=self.bounds.gradient(length),
                gg=squares(gradient),
                gu=torch.linalg.vecdot(gradient, u),
                uu=squares(u),
                share=self.bounds.slack.share,
            )
            proved = self.prover.at_points(measured, m)
            proved = torch.minimum(proved, reach * ROUND_DOWN)
            inside = u.norm(dim=1) * (1 + 1e-9) <= reach
            better = inside & (proved > margins.radius[row, target])
            new = Witnesses(row=row, target=target, point=u.half(), curvature=m).take(better)
            margins.radius[new.row, new.target] = proved[better]
            region[new.row] = ball[new.row]
            old = ~torch.isin(
                witnesses.row * classes + witnesses.target, new.row * classes + new.target
            )
            witnesses = Witnesses.concatenate([witnesses.take(old), new])
        return witnesses.sorted(classes)

    def _at(
        self, margins: Margins, row: Tensor, target: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values (k,) and gradients (k, features) in float64 of margins (row, target) at x + u."""
        first = self.exact.layers[0]
        label = margins.label[row]
        cotangent = self.readout.margin(label, target)
        hidden, slopes = self.exact.hidden(first(margins.x[row] + u))
        gradient = first.transpose(self.exact.pull_back_hidden(slopes, cotangent))
        value = torch.linalg.vecdot(hidden, cotangent) + self.readout.margin_offset(label, target)
        return value, gradient


# A local ball reaches this far, relatively, beyond the stated radius it is to prove.
_BEYOND = 1e-6
# Less than this is not worth a curvature of its own, relatively.
_GAIN = 1e-3
# A witness lies near the boundary if its margin is this small beside |g| |u|.
_NEAR = 0.05
