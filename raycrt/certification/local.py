"""Radii raised by curvature bounds that are proved only on a ball around the image.

The ball's radius is just above the smallest stated radius not yet certified, or the distance at
which the solver reached the decision boundary. Curvature proved on a ball applies to points and
radii inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.spectral import SLACK
from raycrt.certification.certificate import Witnesses, witness_points
from raycrt.certification.targets import Targets
from raycrt.margins.evaluation import MarginEvaluator
from raycrt.margins.images import Margins
from raycrt.margins.proofs.proof import ROUND_DOWN, Measured
from raycrt.margins.proofs.radius import largest_curvature


@dataclass(frozen=True, kw_only=True)
class Balls:
    """Balls that are to prove the radii `stated` (increasing, float64), with the `curvature` on
    them, and the solver in `targets` that searches for points inside them."""

    curvature: LocalCurvature
    stated: Tensor
    targets: Targets

    def raise_radii(
        self, margins: Margins, witnesses: Witnesses, region: Tensor, at: Tensor
    ) -> Witnesses:
        """Raise `margins.radius` by curvature on balls, and set `region` (n,) where that pays off.

        Every stated radius is decided as if it were the only one: a row that does not exceed it
        with the global curvature, nor with a larger ball, gets a ball for it, and keeps the ball
        that proves the largest radius. A finite radius `at` (n,) of a row replaces the stated
        radii.
        """
        tolerances = self.targets.prepared.tolerances
        start, kept = margins.radius.clone(), witnesses
        classes, radius = start.shape[1], start.amin(1)
        first, boundary = self._boundary(margins, witnesses)
        able = (radius > 0) & (radius * (1 + tolerances.ball_gain) < boundary)
        able &= ~margins.constant.gather(1, first[:, None])[:, 0]
        tried = torch.full_like(radius, torch.inf)
        for stated in self._stated(at):
            beyond = stated * (1 + tolerances.ball_beyond)
            ball = torch.minimum(beyond, boundary * (1 + tolerances.ball_gain))
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

    def _stated(self, at: Tensor) -> Tensor:
        """The radii (k, n) to be decided, the largest first; infinite where there is none."""
        stated = self.stated.to(at.device).flip(0)[:, None].expand(-1, len(at))
        stated = stated.masked_fill(torch.isfinite(at), torch.inf)
        return torch.cat([at[None], stated])

    def _boundary(self, margins: Margins, witnesses: Witnesses) -> tuple[Tensor, Tensor]:
        """The class (n,) of the smallest radius, which limits the radius of the row, and the
        distance (n,) beyond which nothing can be gained: where the solver met the boundary of that
        class, else infinite."""
        n, classes = margins.radius.shape
        rows, first = torch.arange(n, device=margins.radius.device), margins.radius.argmin(1)
        u = witness_points(witnesses, rows, first, n, classes)
        at = self._evaluator(margins, rows, first).measure_as_kept(u)
        slope, shift = at.gg.sqrt(), at.uu.sqrt()
        boundary = shift + at.value.clamp(min=0) / slope
        near = self.targets.prepared.tolerances.on_boundary
        return first, torch.where(at.value <= near * slope * shift, boundary, torch.inf)

    def _evaluator(self, margins: Margins, row: Tensor, target: Tensor) -> MarginEvaluator:
        m = margins.m[row, target]
        return MarginEvaluator.of(self.targets.prepared, margins, row, target, m)

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
        """Raise the radii of the `rows` (n,), each on its `ball` (n,): first for the class `first`,
        then for the classes below it where the row can exceed its `best` radius (n,)."""
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
        """Raise the radii of margins (row, target) on balls of radius `ball` (n,), only up to
        `enough` (n,) where that is cheaper. Returns the witnesses with new ones replacing old."""
        n, classes = margins.radius.shape
        proof = self.targets.prepared.proof
        for part in torch.stack([row, target], 1).split(self.targets.batch_size):
            row, target = part.unbind(1)
            evaluator = self._evaluator(margins, row, target)
            u = witness_points(witnesses, row, target, n, classes)
            at = evaluator.measure_as_kept(u)
            wanted = enough[row] * (1 + self.targets.prepared.tolerances.ball_beyond)
            allowed = largest_curvature(at.value, at.gg, at.gu, at.uu, wanted)
            allowed = torch.where(u.norm(dim=1) < ball[row], allowed, 0.0)
            m = self._curvature_on_balls(margins, row, target, ball, allowed)
            open_ = ((m > allowed) & (m < margins.m[row, target])).nonzero()[:, 0]
            if len(open_):
                inner = row[open_], target[open_], m[open_]
                u[open_] = self._points_inside(margins, *inner, ball, enough)
                at = evaluator.measure_as_kept(u)
            proved = torch.minimum(proof.at_points(at, m), ball[row] * ROUND_DOWN)
            better = self._inside(at, ball[row]) & (proved > margins.radius[row, target])
            new = Witnesses(row=row, target=target, point=u.half(), curvature=m).take(better)
            margins.radius[new.row, new.target] = proved[better]
            region[new.row] = ball[new.row]
            old = ~torch.isin(
                witnesses.row * classes + witnesses.target, new.row * classes + new.target
            )
            witnesses = Witnesses.concatenate([witnesses.take(old), new])
        return witnesses.sorted(classes)

    def _curvature_on_balls(
        self, margins: Margins, row: Tensor, target: Tensor, ball: Tensor, allowed: Tensor
    ) -> Tensor:
        """Proved m (k,) of margins (row, target) on the balls of their rows, or `allowed` (k,)
        where that bound is proved at lower cost."""
        m = margins.m[row, target].clone()
        for i in row.unique().tolist():
            own = row == i
            proved = self.curvature(
                margins.x[i],
                float(ball[i]),
                int(margins.label[i]),
                target[own],
                enough=allowed[own],
            )
            m[own] = torch.minimum(m[own], proved)
        return m

    def _points_inside(
        self,
        margins: Margins,
        row: Tensor,
        target: Tensor,
        m: Tensor,
        ball: Tensor,
        enough: Tensor,
    ) -> Tensor:
        """The best points (k, features) for margins of curvature m, scaled into their balls."""
        found = self.targets.points(margins, row, target, m, enough[row] * (1 + 1e-5)).double()
        longest = ball[row] * (1 - self.targets.prepared.tolerances.ball_gain)
        shrink = (longest / found.norm(dim=1).clamp(min=1e-300)).clamp(max=1)
        return (found * shrink[:, None]).half().double()

    @staticmethod
    def _inside(at: Measured, ball: Tensor) -> Tensor:
        """Whether points lie in balls of radius `ball` (k,), judged by upper bounds of norms."""
        return at.uu.sqrt() * SLACK <= ball
