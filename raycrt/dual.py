"""The certificate of one margin, its value at any point, and the solver that looks for it.

Let f be a margin with `Hess f >= -m I` and x = x0 + u any point, f and g its value and gradient
there. Then `f(x') >= f + g.(x' - x) - m/2 |x' - x|^2`, and the right-hand side is positive exactly
in a ball with centre x + g/m. So f > 0 on every x' nearer to x0 than

    r(u) = (2 (f - g.u) - m |u|^2) / (|g + m u| + sqrt(|g|^2 + 2 m f)).

This is the dual bound of Singla & Feizi (2020, Thm 1) at the best multiplier, repaired for points x
that do not minimise the dual: every u gives a valid radius and the best one is valid, so the solver
needs no convergence test to be sound. u = 0 is the closed form `2 f / (|g| + sqrt(|g|^2 + 2 m f))`.
At the nearest point of {f = 0}, if `m |u| < |g|`, r(u) = |u|: the radius is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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
_BISECTIONS = 50


def radius(value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, m: Tensor) -> Tensor:
    """r(u) from f and the products g.g, g.u, u.u; all of one shape.

    Negative or zero where the point proves nothing, NaN where no real radius exists. The formula is
    evaluated as it stands; `raycrt.proof` accounts for its rounding.
    """
    across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
    reach = (gg + 2 * m * value).sqrt()
    return (2 * (value - gu) - m * uu) / (across + reach)


def largest_curvature(value: Tensor, gradient: Tensor, u: Tensor, wanted: Tensor) -> Tensor:
    """About the largest m (n,) with r(u; m) >= `wanted`; 0 where there is none. No proof.

    r falls as m grows: the bound of f, lowest on the sphere of radius `wanted`, falls with m.
    """
    gg, gu, uu = products(gradient, u)

    def lowest(m: Tensor) -> Tensor:
        across = (gg + 2 * m * gu + m * m * uu).clamp(min=0).sqrt()
        return value - gu - m / 2 * (uu + wanted * wanted) - across * wanted

    # Beyond this even a point without slope proves no such radius.
    high = 2 * (value - gu).clamp(min=0) / (uu + wanted * wanted)
    low = torch.zeros_like(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = lowest(middle) >= 0
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(lowest(low) >= 0, low, 0.0)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Margins at points of coordinates `u` (n, d): `value` (n,) and `gradient` g (n, d) in their
    type; in float64 the products `gg`, `gu` and `uu` (n,), whose sums may cancel, and the `radius`
    (n,) that the point is worth; 0 where it has not been judged."""

    u: Tensor
    value: Tensor
    gradient: Tensor
    gg: Tensor
    gu: Tensor
    uu: Tensor
    radius: Tensor

    @staticmethod
    def at(u: Tensor, value: Tensor, gradient: Tensor) -> Points:
        """Not judged yet."""
        gg, gu, uu = products(gradient, u)
        radius = torch.zeros_like(gg)
        return Points(u=u, value=value, gradient=gradient, gg=gg, gu=gu, uu=uu, radius=radius)

    def estimate(self, m: Tensor) -> Tensor:
        """About what the points are worth, if nothing were rounded, to margins of curvature m."""
        worth = radius(self.value.double(), self.gg, self.gu, self.uu, m)
        return worth.nan_to_num(0.0, 0.0, 0.0)

    def take(self, rows: Tensor) -> Points:
        """Those of the given numbers."""
        return Points(**{name: part.index_select(0, rows) for name, part in vars(self).items()})

    def unjudged(self) -> Points:
        return replace(self, radius=torch.zeros_like(self.radius))

    def copied(self) -> Points:
        return Points(**{name: part.clone() for name, part in vars(self).items()})

    def write(self, rows: Tensor, points: Points) -> None:
        """Put `points` in the place of those of the given numbers."""
        for name, part in vars(self).items():
            part[rows] = getattr(points, name)

    def where_better(self, others: Points) -> Points:
        """The points of larger radius, these or `others`; these where there is no difference."""
        better = others.radius > self.radius
        if better.all():
            return others
        rows = better.nonzero()[:, 0]
        best = self.copied()
        best.write(rows, others.take(rows))
        return best


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
        turned = _dot(found.gradient, step) - _dot(at.gradient, step)
        bend = turned / _dot(step, step).clamp(min=torch.finfo(dtype).tiny)
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


def products(gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g.g, g.u and u.u (n,) in float64."""
    g, u = gradient.double(), u.double()
    return _dot(g, g), _dot(g, u), _dot(u, u)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)


_TINY = torch.finfo(torch.float64).tiny
