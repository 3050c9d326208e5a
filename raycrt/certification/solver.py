"""The solver that looks for points of large radius; what it proposes needs no proof to be sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raycrt.margins.radius import Points, dot

# A margin is left alone when its radius rose by less than this, relatively, in `_PATIENCE` steps.
_PROGRESS = 1e-6
_PATIENCE = 3
# The active set is compacted when less than this share of it is still open.
_SHRINK = 0.8
# Multipliers stay this far, relatively, below the pole at 1/m.
_CAP = 1e-6
# Curvatures down to this share of -m are stepped over as they were seen.
_BENT_AWAY = 0.9
# A point that is worth less than this share of the best one is gone back on: from there the step is
# halved, at most so often.
_LOST, _HALVINGS = 0.8, 6


@dataclass(frozen=True, kw_only=True)
class Solution:
    """For each margin the `best` point found, and `bend` (n,), the curvature that was seen along
    the last step."""

    best: Points
    bend: Tensor

    def next(self, m: Tensor) -> Tensor:
        """The points (n, d) to which a step from the best ones of margins of curvature m leads."""
        return _moved(self.best, _multiplier(self.best, m), self.bend)

    def copied(self) -> Solution:
        return Solution(best=self.best.copied(), bend=self.bend.clone())


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
    tolerance: float,
    ahead: bool = False,
    bend: Tensor | None = None,
) -> Solution:
    """Look for points of large radius for n margins of curvature `m` (n,), from `start` on.

    A margin is left alone as soon as its radius reaches `enough` (n,), the radius stops to grow, or
    the step from the last point, or if `ahead` the step that is expected from the point after it,
    is shorter than `tolerance` times the length of that point; the work goes on with the others. A
    radius is as near its best as the square of the tolerance: the nearer the multiplier is to its
    pole, the more a step costs, and the shorter it must be. `bend` is the curvature that an
    earlier solution ended with.
    """
    state = _State.of(start, m, enough, torch.zeros_like(m) if bend is None else bend)
    found: Solution | None = None
    is_open = start.radius < enough
    if ahead:
        is_open &= ~state.settled(tolerance, ahead)
    for step in range(1, steps + 1):
        left = int(is_open.sum())
        if left == 0:
            break
        if left < _SHRINK * len(is_open):
            found = state.solution().copied() if found is None else state.written_to(found)
            state = state.keep(is_open)
        state.advance(evaluate)
        is_open = (state.best.radius < state.enough) & ~state.settled(tolerance, ahead)
        is_open &= state.share > 0.5**_HALVINGS
        if step % _PATIENCE == 0:
            is_open &= (state.best.radius > state.before * (1 + _PROGRESS)) | (state.share < 1)
            state.before = state.best.radius
    return state.solution() if found is None else state.written_to(found)


@dataclass(kw_only=True)
class _State:
    """The iterates `at` of the margins that are still open, with the multiplier `eta` of each, the
    squared length of the `step` from there, relative to that of the next point, and of the one
    before; and the `best` of them so far."""

    row: Tensor
    m: Tensor
    enough: Tensor
    at: Points
    best: Points
    before: Tensor
    bend: Tensor
    eta: Tensor
    step: Tensor
    step_before: Tensor
    # What is taken of the step from where the last ones led too far.
    share: Tensor

    @staticmethod
    def of(start: Points, m: Tensor, enough: Tensor, bend: Tensor) -> _State:
        row = torch.arange(len(m), device=m.device)
        eta = _multiplier(start, m)
        return _State(
            row=row,
            m=m,
            enough=enough,
            at=start,
            best=start,
            before=start.radius,
            bend=bend,
            eta=eta,
            step=_step(start, eta),
            step_before=torch.ones_like(eta),
            share=torch.ones_like(eta),
        )

    def advance(self, evaluate: Evaluate) -> None:
        """A step of `u <- -eta g`: eta is the root of the linearised margin, capped below 1/m, and
        the step is damped, or stretched, by the curvature seen along the one before."""
        at, dtype = self.at, self.at.u.dtype
        moved = _moved(at, self.eta, self.bend)
        if (self.share < 1).any():
            moved = torch.lerp(at.u, moved, self.share.to(dtype)[:, None])
        found = evaluate(self.row, moved)
        step = found.u - at.u
        turned = dot(found.gradient, step) - dot(at.gradient, step)
        bend = turned / dot(step, step).clamp(min=torch.finfo(dtype).tiny)
        self.bend = torch.maximum(bend.to(self.m.dtype), -_BENT_AWAY * self.m)
        lost = found.radius < _LOST * self.best.radius
        self.share = torch.where(lost, self.share / 2, 1.0)
        self.at, self.best = found, self.best.where_better(found)
        if lost.any():
            back = lost.nonzero()[:, 0]
            found.write(back, self.best.take(back))
        self.eta = _multiplier(self.at, self.m)
        self.step_before, self.step = self.step, _step(self.at, self.eta)

    def settled(self, tolerance: float, ahead: bool) -> Tensor:
        """Where the undamped next step, or the one after it if steps go on to shrink as they did,
        is short: it costs its square over `1 - eta m`."""
        step = self.step * (self.step / self.step_before) if ahead else self.step
        return step <= tolerance**2 * (1 - self.eta * self.m)

    def solution(self) -> Solution:
        return Solution(best=self.best, bend=self.bend)

    def written_to(self, found: Solution) -> Solution:
        """`found` of all margins, with what these have come to."""
        found.best.write(self.row, self.best)
        found.bend[self.row] = self.bend
        return found

    def keep(self, rows: Tensor) -> _State:
        kept = rows.nonzero()[:, 0]
        parts: dict[str, Any] = {
            name: part.take(kept) if isinstance(part, Points) else part.index_select(0, kept)
            for name, part in vars(self).items()
        }
        return _State(**parts)


def _multiplier(at: Points, m: Tensor) -> Tensor:
    eta = ((at.value.double() - at.gu) / at.gg.clamp(min=_TINY)).clamp(min=0)
    return torch.minimum(eta, (1 - _CAP) / m.clamp(min=1e-30))


def _moved(at: Points, eta: Tensor, bend: Tensor) -> Tensor:
    pull = 1 / (1 + eta * bend)
    moved = (1 - pull).to(at.u.dtype)[:, None] * at.u
    return moved.addcmul_((pull * eta).to(at.u.dtype)[:, None], at.gradient, value=-1)


def _step(at: Points, eta: Tensor) -> Tensor:
    """The squared length of the step to `-eta g`, relative to that of this point."""
    after = eta * eta * at.gg
    return (after + 2 * eta * at.gu + at.uu).clamp(min=0) / after.clamp(min=_TINY)


_TINY = torch.finfo(torch.float64).tiny
