"""Selects the margins of a batch to solve and for how long, and raises their radii."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.certification import solver
from raycrt.certification.certificate import Witnesses
from raycrt.margins.evaluation import MarginEvaluator
from raycrt.margins.images import Margins
from raycrt.margins.prepared import PreparedNetwork
from raycrt.margins.proofs.radius import Points


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Raises the radii of a network's margins with at most `steps` steps each (0: none).

    Margins are taken `batch_size` at a time. With `decided`, no further work is done on a row once
    its radius cannot exceed the radius to be decided. With `runner_up`, the runner-up is solved
    even where it cannot lower the row's radius.
    """

    prepared: PreparedNetwork
    steps: int
    batch_size: int
    runner_up: bool
    decided: bool

    def improve(self, margins: Margins, at: Tensor) -> Witnesses:
        """Raise `margins.radius` in place where a better point can raise the row's minimum, until
        that exceeds `at` (n,).

        The class of the smallest closed form is solved first, then the classes that could still
        lie below it, and only until they no longer do. With `runner_up`, the runner-up is solved
        without being limited by that minimum, for comparison with runner-up-only certificates.
        """
        radii, beyond = margins.radius, self.prepared.tolerances.beyond
        rows = torch.arange(len(radii), device=radii.device)
        parts = [Witnesses.none(margins.x.shape[1], radii.device)]
        if self.steps > 0:
            wanted = at * (1 + beyond)
            first = radii.argmin(1)
            short = (radii[rows, first] < wanted) & ~margins.constant[rows, first]
            short = short.nonzero()[:, 0]
            parts.append(self.solve(margins, short, first[short], wanted[short]))
            enough = self._enough(radii[rows, first], at)[:, None].expand_as(radii).clone()
            if self.runner_up:
                enough[rows, margins.runner_up] = wanted
            rest = (radii < enough) & ~margins.constant
            rest[rows, first] = False
            pairs = rest.nonzero()
            for part in pairs.split(self.batch_size):
                row, target = part.unbind(1)
                parts.append(self.solve(margins, row, target, enough[row, target]))
        return Witnesses.concatenate(parts).sorted(radii.shape[1])

    def _enough(self, first: Tensor, at: Tensor) -> Tensor:
        """The radii (n,) that the other classes must reach once a class has radius `first` (n,); 0
        where `first` already decides the row and no ball can raise it."""
        tolerances = self.prepared.tolerances
        enough = torch.minimum(first * (1 + tolerances.clear), at * (1 + tolerances.beyond))
        if not self.decided:
            return enough
        return enough.masked_fill((first <= at) & torch.isfinite(at), 0.0)

    def solve(self, margins: Margins, row: Tensor, target: Tensor, enough: Tensor) -> Witnesses:
        """Solve margins (row, target), raise their radii, and return the new witnesses."""
        prepared, m = self.prepared, margins.m[row, target]
        evaluator = MarginEvaluator.of(prepared, margins, row, target, m)
        start = evaluator.start(enough)
        found = self._search(evaluator, start, enough)
        point, radius = prepared.space.point(found.u), found.radius
        # Prove again as stored where rounding costs much, or where nothing is proved yet.
        more = found.estimate(m) > radius * (1 + prepared.tolerances.raised)
        short = (start.radius < enough) & (radius < enough) & more
        again = short.nonzero()[:, 0]
        if prepared.rounds and len(again) > 0:
            kept = evaluator.prove_as_kept(again, point[again])
            radius = radius.index_copy(0, again, torch.maximum(radius[again], kept))
        better = radius > start.radius
        margins.radius[row, target] = torch.maximum(radius, start.radius)
        witnesses = Witnesses(row=row, target=target, point=point, curvature=m)
        return witnesses if better.all() else witnesses.take(better.nonzero()[:, 0])

    def points(
        self, margins: Margins, row: Tensor, target: Tensor, m: Tensor, enough: Tensor
    ) -> Tensor:
        """The best points (k, features), in float16, found for margins (row, target)."""
        evaluator = MarginEvaluator.of(self.prepared, margins, row, target, m)
        found = self._search(evaluator, evaluator.start(enough), enough)
        return self.prepared.space.point(found.u)

    def _search(self, evaluator: MarginEvaluator, start: Points, enough: Tensor) -> Points:
        """The best points found, with proved radii; u = 0 with radius 0 where the start is enough.

        Estimates lead close to the solution, in a few coordinates if there are any. From there
        every iterate is proved directly, except those of `steep` margins, which get radius 0 here
        and must be proved as stored.
        """
        tolerances, m = self.prepared.tolerances, evaluator.m
        in_space = self.prepared.directions is None
        is_open = start.radius < enough
        near = solver.solve(
            start,
            evaluator.estimate,
            m,
            enough=enough,
            steps=self.steps,
            settled=tolerances.settled if in_space else tolerances.near_settled,
            tolerances=tolerances,
            ahead=in_space,
        )
        steep = is_open & torch.isinf(enough) & evaluator.steep(near.best)
        left = (is_open & ~steep).nonzero()[:, 0]
        points = near.best.take(left)
        solved = solver.solve(
            points.without_radius() if in_space else evaluator.in_space(left, points),
            lambda rows, u: evaluator.prove(left[rows], u),
            m[left],
            enough=enough[left],
            steps=self.steps,
            settled=tolerances.settled,
            tolerances=tolerances,
            secant=near.secant[left],
        )
        if len(left) == len(enough):
            return solved.best
        u = start.u.new_zeros(len(enough), self.prepared.space.size)
        found = Points.at(u, start.value.clone(), u.clone())
        found.write(left, solved.best)
        rows = steep.nonzero()[:, 0]
        best = near.best.take(rows)
        last = evaluator.estimate(rows, near.next(m, tolerances)[rows])
        # With this m the last point may certify slightly less and yet be closer to the solution.
        best.radius.mul_(tolerances.last)
        found.write(rows, best.where_better(last).without_radius())
        return found
