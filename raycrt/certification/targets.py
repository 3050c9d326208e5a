"""The solver: which margins of a batch are worth the work, and points that raise their radii."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.certification import solver
from raycrt.certification.certificate import Margins, Witnesses
from raycrt.margins.evaluation import Problem
from raycrt.margins.prepared import Arithmetic
from raycrt.margins.radius import Points


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Raises the radii of a network's margins: `steps` for each at most, none where that is 0.

    Margins are taken `batch_size` at a time. With `decided` a row whose radius does not exceed what
    is to be decided is left alone. With `runner_up` that class is solved for its own sake.
    """

    by: Arithmetic
    steps: int
    batch_size: int
    runner_up: bool
    decided: bool

    def improve(self, margins: Margins, runner_up: Tensor, at: Tensor) -> Witnesses:
        """Raise `margins.radius` in place where a better point can raise the row's minimum, until
        that exceeds `at` (n,).

        First the class of the smallest closed form; then those classes that could still lie below
        it, and only until they no longer do. With `runner_up` it is solved wherever it is not
        bounded by that minimum, to be compared with certificates of the runner-up alone.
        """
        radii = margins.radius
        rows = torch.arange(len(radii), device=radii.device)
        parts = [Witnesses.none(margins.x.shape[1], radii.device)]
        if self.steps > 0:
            wanted = at * (1 + _BEYOND)
            first = radii.argmin(1)
            short = (radii[rows, first] < wanted) & ~margins.constant[rows, first]
            short = short.nonzero()[:, 0]
            parts.append(self.solve(margins, short, first[short], wanted[short]))
            enough = self._enough(radii[rows, first], at)[:, None].expand_as(radii).clone()
            if self.runner_up:
                enough[rows, runner_up] = wanted
            rest = (radii < enough) & ~margins.constant
            rest[rows, first] = False
            pairs = rest.nonzero()
            for part in pairs.split(self.batch_size):
                row, target = part.unbind(1)
                parts.append(self.solve(margins, row, target, enough[row, target]))
        return Witnesses.concatenate(parts).sorted(radii.shape[1])

    def _enough(self, first: Tensor, at: Tensor) -> Tensor:
        """The radii (n,) that further classes have to reach once a class has radius `first` (n,):
        none, 0, where that decides the row, which no ball can then raise."""
        enough = torch.minimum(first * (1 + _CLEAR), at * (1 + _BEYOND))
        if not self.decided:
            return enough
        return enough.masked_fill((first <= at) & torch.isfinite(at), 0.0)

    def solve(self, margins: Margins, row: Tensor, target: Tensor, enough: Tensor) -> Witnesses:
        """Solve margins (row, target), raise their radii, and return the points that did it."""
        by, m = self.by, margins.m[row, target]
        problem = self._problem(margins, row, target, m)
        start = problem.start(enough)
        found = self._search(problem, start, enough)
        point, radius = by.space.point(found.u), found.radius
        # Where rounding costs much, and all of it where nothing is proved yet.
        worth = found.estimate(m) > radius * (1 + _WORTH)
        short = (start.radius < enough) & (radius < enough) & worth
        again = short.nonzero()[:, 0]
        if by.rounds and len(again) > 0:
            kept = problem.proved_as_kept(again, point[again])
            radius = radius.index_copy(0, again, torch.maximum(radius[again], kept))
        better = radius > start.radius
        margins.radius[row, target] = torch.maximum(radius, start.radius)
        witnesses = Witnesses(row=row, target=target, point=point, curvature=m)
        return witnesses if better.all() else witnesses.take(better.nonzero()[:, 0])

    def points(
        self, margins: Margins, row: Tensor, target: Tensor, m: Tensor, enough: Tensor
    ) -> Tensor:
        """The best points (k, features), float16, that are found for margins (row, target)."""
        problem = self._problem(margins, row, target, m)
        return self.by.space.point(self._search(problem, problem.start(enough), enough).u)

    def _problem(self, margins: Margins, row: Tensor, target: Tensor, m: Tensor) -> Problem:
        return Problem(
            by=self.by,
            image=row,
            label=margins.label[row],
            target=target,
            length=margins.length[row],
            first=margins.first,
            first_fast=margins.first_fast,
            slopes=margins.slopes,
            value=margins.value[row, target],
            radius=margins.radius[row, target],
            m=m,
        )

    def _search(self, problem: Problem, start: Points, enough: Tensor) -> Points:
        """The best points found, with proved radii; 0 and of radius 0 where the start is enough.

        Estimates lead to the solution, first in a few coordinates where there are such. From there
        on every iterate is proved as it stands; but those of `steep` margins, of radius 0 here, are
        to be proved as they are kept.
        """
        is_open = start.radius < enough
        near = solver.solve(
            start,
            problem.near,
            problem.m,
            enough=enough,
            steps=self.steps,
            tolerance=_SETTLED if self.by.directions is None else _NEAR_ENOUGH,
            ahead=self.by.directions is None,
        )
        steep = is_open & torch.isinf(enough) & problem.steep(near.best)
        left = (is_open & ~steep).nonzero()[:, 0]
        points = near.best.take(left)
        solved = solver.solve(
            points.unjudged() if self.by.directions is None else problem.whole(left, points),
            lambda rows, u: problem.proved(left[rows], u),
            problem.m[left],
            enough=enough[left],
            steps=self.steps,
            tolerance=_SETTLED,
            bend=near.bend[left],
        )
        if len(left) == len(enough):
            return solved.best
        u = start.u.new_zeros(len(enough), self.by.space.size)
        found = Points.at(u, start.value.clone(), u.clone())
        found.write(left, solved.best)
        rows = steep.nonzero()[:, 0]
        best, last = near.best.take(rows), problem.near(rows, near.next(problem.m)[rows])
        # By m the last point may be worth a little less, and yet be nearer to the solution.
        best.radius.mul_(_LAST)
        found.write(rows, best.where_better(last).unjudged())
        return found


# A class whose radius exceeds the row's minimum by this, relatively, stays above it when proved.
_CLEAR = 1e-4
# A radius that exceeds the one it is decided at by this, relatively, is not raised further.
_BEYOND = 1e-6
# Relative length of the steps at which the solver stops: in a few coordinates, whose solution is
# only near that of all; in all of them; and where every step is proved.
_NEAR_ENOUGH, _SETTLED = 1e-1, 4e-3
# The last point is taken where it is worth this share of the best one.
_LAST = 0.99
# Points are proved again as they are kept where that may raise a radius by this, relatively.
_WORTH = 1e-5
