"""The solver that looks for points of large radius; what it proposes needs no proof to be sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from raycrt.margins.radius import Points, dot
from raycrt.margins.tolerances import Tolerances


class Stop(IntEnum):
    """Why the solver left a margin: it had taken all steps; the radius was enough; steps were
    short; the radius had stopped to grow; steps led too far however short they were made."""

    STEPS = 0
    ENOUGH = 1
    SETTLED = 2
    NO_PROGRESS = 3
    LOST = 4


@dataclass(frozen=True, kw_only=True)
class Solution:
    """For each of n margins the `best` point found, the curvature `secant` that was seen along the
    last step, how many `steps` were taken, and the `Stop` for which it was left (n,)."""

    best: Points
    secant: Tensor
    steps: Tensor
    stop: Tensor

    def next(self, m: Tensor, tolerances: Tolerances) -> Tensor:
        """The points (n, d) to which a step from the best ones of margins of curvature m leads."""
        return _moved(self.best, _multiplier(self.best, m, tolerances.below_pole), self.secant)

    def copied(self) -> Solution:
        return Solution(
            best=self.best.copied(),
            secant=self.secant.clone(),
            steps=self.steps.clone(),
            stop=self.stop.clone(),
        )


# The margins of the given numbers at the given points, or at points that stand for these.
Evaluate = Callable[[Tensor, Tensor], Points]


@torch.no_grad()
def solve(
    start: Points,
    evaluate: Evaluate,
    m: Tensor,
    *,
    enough: Tensor,
    steps: int,
    settled: float,
    tolerances: Tolerances,
    ahead: bool = False,
    secant: Tensor | None = None,
) -> Solution:
    """Look for points of large radius for n margins of curvature `m` (n,), from `start` on.

    A margin is left alone as soon as its radius reaches `enough` (n,), the radius stops to grow, or
    the step from the last point, or if `ahead` the step that is expected from the point after it,
    is shorter than `settled` times the length of that point; the work goes on with the others. A
    radius is as near its best as the square of that: the nearer the multiplier is to its pole, the
    more a step costs, and the shorter it must be. `secant` is the curvature that an earlier
    solution ended with.
    """
    secant = torch.zeros_like(m) if secant is None else secant
    state = _State.of(start, m, enough, secant, tolerances)
    found: Solution | None = None
    state.stop = torch.where(start.radius < enough, Stop.STEPS, Stop.ENOUGH)
    if ahead:
        state.stop[state.settled(settled, ahead) & (state.stop == Stop.STEPS)] = Stop.SETTLED
    for _ in range(steps):
        is_open = state.stop == Stop.STEPS
        left = int(is_open.sum())
        if left == 0:
            break
        if left < tolerances.shrink * len(is_open):
            found = state.solution().copied() if found is None else state.written_to(found)
            state = state.keep(is_open)
        state.advance(evaluate)
        state.judge(settled, ahead)
    return state.solution() if found is None else state.written_to(found)


@dataclass(kw_only=True)
class _State:
    """The iterates `at` of the margins that are still open, with the multiplier `eta` of each, the
    squared length of the `step` from there, relative to that of the next point, and of the one
    before; and the `best` of them so far."""

    tolerances: Tolerances
    steps: int
    stop: Tensor
    row: Tensor
    m: Tensor
    enough: Tensor
    at: Points
    best: Points
    before: Tensor
    secant: Tensor
    eta: Tensor
    step: Tensor
    step_before: Tensor
    # What is taken of the step from where the last ones led too far.
    share: Tensor

    @staticmethod
    def of(
        start: Points, m: Tensor, enough: Tensor, secant: Tensor, tolerances: Tolerances
    ) -> _State:
        row = torch.arange(len(m), device=m.device)
        eta = _multiplier(start, m, tolerances.below_pole)
        return _State(
            tolerances=tolerances,
            steps=0,
            stop=torch.zeros_like(row),
            row=row,
            m=m,
            enough=enough,
            at=start,
            best=start,
            before=start.radius,
            secant=secant,
            eta=eta,
            step=_step(start, eta),
            step_before=torch.ones_like(eta),
            share=torch.ones_like(eta),
        )

    def advance(self, evaluate: Evaluate) -> None:
        """A step of `u <- -eta g`: eta is the root of the linearised margin, capped below 1/m, and
        the step is damped, or stretched, by the curvature seen along the one before."""
        at, dtype = self.at, self.at.u.dtype
        moved = _moved(at, self.eta, self.secant)
        if (self.share < 1).any():
            moved = torch.lerp(at.u, moved, self.share.to(dtype)[:, None])
        found = evaluate(self.row, moved)
        step = found.u - at.u
        turned = dot(found.gradient, step) - dot(at.gradient, step)
        secant = turned / dot(step, step).clamp(min=torch.finfo(dtype).tiny)
        self.secant = torch.maximum(secant.to(self.m.dtype), -self.tolerances.least_secant * self.m)
        lost = found.radius < self.tolerances.lost * self.best.radius
        self.share = torch.where(lost, self.share / 2, 1.0)
        self.at, self.best = found, self.best.where_better(found)
        if lost.any():
            back = lost.nonzero()[:, 0]
            found.write(back, self.best.take(back))
        self.eta = _multiplier(self.at, self.m, self.tolerances.below_pole)
        self.step_before, self.step = self.step, _step(self.at, self.eta)
        self.steps += 1

    def judge(self, settled: float, ahead: bool) -> None:
        """Say for which margins no further step is worth its time, and why."""
        self.stop = torch.zeros_like(self.stop)
        if self.steps % self.tolerances.patience == 0:
            grown = self.best.radius > self.before * (1 + self.tolerances.progress)
            self.stop[~grown & (self.share == 1)] = Stop.NO_PROGRESS
            self.before = self.best.radius
        self.stop[self.share <= 0.5**self.tolerances.halvings] = Stop.LOST
        self.stop[self.settled(settled, ahead)] = Stop.SETTLED
        self.stop[self.best.radius >= self.enough] = Stop.ENOUGH

    def settled(self, length: float, ahead: bool) -> Tensor:
        """Where the undamped next step, or the one after it if steps go on to shrink as they did,
        is short: it costs its square over `1 - eta m`."""
        step = self.step * (self.step / self.step_before) if ahead else self.step
        return step <= length**2 * (1 - self.eta * self.m)

    def solution(self) -> Solution:
        steps = torch.full_like(self.stop, self.steps)
        return Solution(best=self.best, secant=self.secant, steps=steps, stop=self.stop)

    def written_to(self, found: Solution) -> Solution:
        """`found` of all margins, with what these have come to."""
        found.best.write(self.row, self.best)
        found.secant[self.row] = self.secant
        found.steps[self.row] = self.steps
        found.stop[self.row] = self.stop
        return found

    def keep(self, rows: Tensor) -> _State:
        kept = rows.nonzero()[:, 0]
        parts: dict[str, Any] = dict(vars(self))
        for name, part in parts.items():
            if isinstance(part, Points):
                parts[name] = part.take(kept)
            elif isinstance(part, Tensor):
                parts[name] = part.index_select(0, kept)
        return _State(**parts)


def _multiplier(at: Points, m: Tensor, below_pole: float) -> Tensor:
    eta = ((at.value.double() - at.gu) / at.gg.clamp(min=_TINY)).clamp(min=0)
    return torch.minimum(eta, (1 - below_pole) / m.clamp(min=1e-30))


def _moved(at: Points, eta: Tensor, secant: Tensor) -> Tensor:
    pull = 1 / (1 + eta * secant)
    moved = (1 - pull).to(at.u.dtype)[:, None] * at.u
    return moved.addcmul_((pull * eta).to(at.u.dtype)[:, None], at.gradient, value=-1)


def _step(at: Points, eta: Tensor) -> Tensor:
    """The squared length of the step to `-eta g`, relative to that of this point."""
    after = eta * eta * at.gg
    return (after + 2 * eta * at.gu + at.uu).clamp(min=0) / after.clamp(min=_TINY)


_TINY = torch.finfo(torch.float64).tiny
