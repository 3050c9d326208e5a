"""Radii raised by curvature bounds that are proved only on a ball around the image.

A ball's radius is just above a stated radius that is not yet certified, or the distance at which
the solver reached the decision boundary, or it is searched. Curvature proved on a ball applies to
points and radii inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.spectral import SLACK
from raycrt.certification.certificate import Witnesses, witness_points
from raycrt.certification.enclosures import Enclosures
from raycrt.certification.targets import Targets
from raycrt.margins.evaluation import MarginEvaluator
from raycrt.margins.images import Margins
from raycrt.margins.proofs.proof import ROUND_DOWN, Measured
from raycrt.margins.proofs.radius import largest_curvature

# From a ball that is too small to a larger one.
_FACTOR = 1.3


@dataclass(frozen=True, kw_only=True)
class Balls:
    """Balls that are to prove the radii `stated` (increasing, float64), with the `curvature` on
    them, `enclosures` where there are three layers or more, and the solver in `targets` that
    searches for points inside them."""

    curvature: LocalCurvature
    enclosures: Enclosures | None
    stated: Tensor
    targets: Targets

    def raise_radii(
        self,
        margins: Margins,
        witnesses: Witnesses,
        region: Tensor,
        enclosed: Tensor,
        at: Tensor,
    ) -> Witnesses:
        """Raise `margins.radius` by enclosures and by curvature on balls, and set `enclosed` (n,)
        and `region` (n,) where these pay off.

        Every stated radius is decided as if it were the only one: a row that does not exceed it
        with the global curvature, nor with a larger ball, gets a ball for it. Then the ball that
        proves the largest radius is searched; a row keeps the best of all. A finite radius `at`
        (n,) of a row replaces all that.
        """
        tolerances = self.targets.prepared.tolerances
        classes, radius = margins.radius.shape[1], margins.radius.amin(1)
        first, boundary = self._boundary(margins, witnesses)
        able = radius * (1 + tolerances.ball_gain) < boundary
        able &= ~margins.constant.gather(1, first[:, None])[:, 0]
        curved = ~torch.isfinite(at)
        if self.enclosures is not None:
            enclosed.copy_(self.enclosures.raise_radii(margins, able, self._stated(at)))
            first = margins.radius.argmin(1)
            # Elsewhere balls of curvature prove less than enclosures, and cost most of the time.
            curved &= radius >= tolerances.curved * margins.radius.amin(1)
        able &= radius > 0
        search = _Search(self, margins.radius.clone(), witnesses, first, able)
        farthest = boundary * (1 + tolerances.ball_gain)
        tried = torch.full_like(radius, torch.inf)
        for stated in self._stated(at):
            ball = torch.minimum(stated * (1 + tolerances.ball_beyond), farthest)
            best = margins.radius.amin(1)
            rows = torch.isfinite(stated) & (best <= stated) & (ball < tried)
            tried = torch.where(rows & able, ball, tried)
            search.on(margins, region, rows, ball)
        search.largest(margins, region, curved, farthest)
        return search.kept.sorted(classes)

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


@dataclass
class _Search:
    """The best balls found for the rows `able` (n,) of a batch, whose margins have the radii
    `start` (n, classes) without, and the `kept` witnesses, at first those without."""

    balls: Balls
    start: Tensor
    kept: Witnesses
    first: Tensor
    able: Tensor

    def __post_init__(self) -> None:
        self.without = self.kept

    def on(self, margins: Margins, region: Tensor, rows: Tensor, ball: Tensor) -> Tensor:
        """Try `ball` (n,) for the `rows` (n,) that are able: raise `margins.radius` and set
        `region` where that is better than all balls before. Returns the radii (n,) proved."""
        best, rows = margins.radius.amin(1), rows & self.able
        trial = replace(margins, radius=self.start.clone())
        held = torch.full_like(region, torch.inf)
        found = self.balls._on_ball(trial, self.without, held, self.first, rows, ball, best)
        proved = trial.radius.amin(1)
        better = proved > best
        margins.radius[better], region[better] = trial.radius[better], held[better]
        self.kept = Witnesses.concatenate(
            [self.kept.take(~better[self.kept.row]), found.take(better[found.row])]
        )
        return proved

    def largest(self, margins: Margins, region: Tensor, rows: Tensor, farthest: Tensor) -> None:
        """Search the balls that prove the largest radii of the `rows` (n,), up to `farthest` (n,).

        The curvature on a ball rises with its radius. So a radius that is limited by its ball asks
        for a larger ball, one that is limited by the curvature for a smaller.
        """
        tolerances = self.balls.targets.prepared.tolerances
        low, high = margins.radius.amin(1), farthest.clone()
        ball = torch.minimum(low * _FACTOR, high)
        for _ in range(tolerances.balls):
            rows = rows & (high > low * (1 + tolerances.best_ball))
            if not bool((rows & self.able).any()):
                return
            proved = self.on(margins, region, rows, ball)
            limited = proved >= ball * (1 - tolerances.ball_gain)
            low = torch.maximum(low, torch.where(rows, margins.radius.amin(1), low))
            high = torch.where(rows & ~limited, torch.minimum(ball, high), high)
            ball = torch.minimum((low * high).sqrt(), low * _FACTOR)
