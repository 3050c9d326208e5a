"""The solver that searches for points of large radius; soundness does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from raycrt.margins.proofs.radius import Points, dot
from raycrt.margins.tolerances import Tolerances


class Stop(IntEnum):
    """Why the solver stopped at a margin: all steps were taken; the radius was enough; steps were
    short; the radius stopped growing; steps led too far however short they were made."""

    STEPS = 0
    ENOUGH = 1
    SETTLED = 2
    NO_PROGRESS = 3
    LOST = 4


@dataclass(frozen=True, kw_only=True)
class Solution:
    """For each of n margins, the `best` point found, the curvature `secant` observed along the last
    step, the number of `steps` taken, and the reason `stop`, a `Stop` (all (n,))."""

    best: Points
    secant: Tensor
    steps: Tensor
    stop: Tensor

    def next(self, m: Tensor, tolerances: Tolerances) -> Tensor:
        """The points (n, d) one step from the best ones, for margins of curvature m."""
        return _moved(self.best, _multiplier(self.best, m, tolerances.below_pole), self.secant)

    def copied(self) -> Solution:
        return Solution(
            best=self.best.copied(),
            secant=self.secant.clone(),
            steps=self.steps.clone(),
            stop=self.stop.clone(),
        )


# Maps indices of margins and points to the margins at these points, or at points near them.
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
    """Search for points of large radius for n margins of curvature `m` (n,), beginning at `start`.

    A margin is closed once its radius reaches `enough` (n,) or stops growing, or once the step from
    the last point (if `ahead`, the step expected from the point after it) is shorter than `settled`
    times the length of that point; the search continues with the others. The radius is then within
    the square of that of its best value: the closer the multiplier is to its pole, the more a step
    costs, and the shorter it must be. `secant` is the final curvature of an earlier solution.
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
    """The iterates `at` of the margins that are still open, the `best` iterates so far, the
    multipliers `eta`, and the squared lengths of the next `step` and of `step_before`, relative to
    those of the points that they lead to."""

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
    # Share of the step that is taken where earlier steps led too far.
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
        """Take a step `u <- -eta g`: eta is the root of the linearised margin, capped below 1/m,
        and the step is damped or stretched by the curvature observed along the previous step."""
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
        """Set `stop` for the margins for which no further step is worth its time."""
        self.stop = torch.zeros_like(self.stop)
        if self.steps % self.tolerances.patience == 0:
            grown = self.best.radius > self.before * (1 + self.tolerances.progress)
            self.stop[~grown & (self.share == 1)] = Stop.NO_PROGRESS
            self.before = self.best.radius
        self.stop[self.share <= 0.5**self.tolerances.halvings] = Stop.LOST
        self.stop[self.settled(settled, ahead)] = Stop.SETTLED
        self.stop[self.best.radius >= self.enough] = Stop.ENOUGH

    def settled(self, length: float, ahead: bool) -> Tensor:
        """Mask of margins whose undamped next step is short, or with `ahead` the one after it if
        steps keep shrinking at the same rate: a step costs its square over `1 - eta m`."""
        step = self.step * (self.step / self.step_before) if ahead else self.step
        return step <= length**2 * (1 - self.eta * self.m)

    def solution(self) -> Solution:
        steps = torch.full_like(self.stop, self.steps)
        return Solution(best=self.best, secant=self.secant, steps=steps, stop=self.stop)

    def written_to(self, found: Solution) -> Solution:
        """Write the current results of the open margins into `found`, which holds all margins."""
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
    """The squared length of the step to `-eta g`, relative to that of `-eta g`."""
    after = eta * eta * at.gg
    return (after + 2 * eta * at.gu + at.uu).clamp(min=0) / after.clamp(min=_TINY)


_TINY = torch.finfo(torch.float64).tiny
