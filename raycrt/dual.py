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
from dataclasses import dataclass

import torch
from torch import Tensor

# A margin is left alone when its radius rose by less than this, relatively, in `_PATIENCE` steps.
_PROGRESS = 1e-6
_PATIENCE = 3
# The active set is compacted when less than this share of it is still open.
_SHRINK = 0.8
# Multipliers stay this far, relatively, below the pole at 1/m.
_CAP = 1e-3
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
    gg, gu, uu = _dot(gradient, gradient), _dot(gradient, u), _dot(u, u)

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
    """Margins at points of coordinates `u` (n, d): `value` (n,), `gradient` (n, d) and the `radius`
    (n,) that the `point` (n, ...), as it is kept, is worth; 0 where it has not been judged."""

    u: Tensor
    point: Tensor
    value: Tensor
    gradient: Tensor
    radius: Tensor


@dataclass(frozen=True, kw_only=True)
class Solution:
    """For each margin the best `point` (n, ...) found, the `radius` (n,) that it is worth, and
    `bend` (n,), the curvature that was seen along the last step."""

    point: Tensor
    radius: Tensor
    bend: Tensor


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
    bend: Tensor | None = None,
) -> Solution:
    """Look for points of large radius for n margins of curvature `m` (n,), from `start` on.

    A margin is left alone as soon as its radius reaches `enough` (n,), its steps become shorter
    than `tolerance` times the point's length, or the radius stops to grow; the work goes on with
    the others. A radius is as near its best as the square of the tolerance. `bend` is the
    curvature that an earlier solution ended with.
    """
    state = _State(
        row=torch.arange(len(m), device=m.device),
        m=m,
        enough=enough,
        u=start.u,
        value=start.value,
        gradient=start.gradient,
        point=start.point,
        best=start.radius,
        before=start.radius,
        bend=torch.zeros_like(m) if bend is None else bend,
    )
    found = Solution(
        point=start.point.clone(), radius=start.radius.clone(), bend=state.bend.clone()
    )
    for step in range(1, steps + 1):
        state.advance(evaluate)
        is_open = (state.best < state.enough) & ~state.settled(tolerance)
        if step % _PATIENCE == 0:
            is_open &= state.best > state.before * (1 + _PROGRESS)
            state.before = state.best
        left = int(is_open.sum())
        if left < _SHRINK * len(is_open):
            state.write(found, ~is_open)
            state = state.keep(is_open)
        if left == 0:
            return found
    state.write(found, torch.ones_like(state.row, dtype=torch.bool))
    return found


@dataclass(kw_only=True)
class _State:
    """The iterates of the margins that are still open."""

    row: Tensor
    m: Tensor
    enough: Tensor
    u: Tensor
    value: Tensor
    gradient: Tensor
    point: Tensor
    best: Tensor
    before: Tensor
    bend: Tensor

    def advance(self, evaluate: Evaluate) -> None:
        """A step of `u <- -eta g`: eta is the root of the linearised margin, capped below 1/m, and
        the step is damped by the curvature seen along the one before."""
        eta, _ = self._multiplier()
        pull = 1 / (1 + eta * self.bend)
        moved = (1 - pull)[:, None] * self.u
        moved.addcmul_((pull * eta)[:, None], self.gradient, value=-1)
        found = evaluate(self.row, moved)
        step = found.u - self.u
        turned = _dot(found.gradient, step) - _dot(self.gradient, step)
        self.bend = (turned / _dot(step, step).clamp(min=_tiny(step))).clamp(min=0)
        self.u, self.value, self.gradient = found.u, found.value, found.gradient
        better = found.radius > self.best
        self.point = torch.where(better[:, None], found.point, self.point)
        self.best = torch.where(better, found.radius, self.best)

    def _multiplier(self) -> tuple[Tensor, Tensor]:
        gg = _dot(self.gradient, self.gradient).clamp(min=_tiny(self.gradient))
        eta = ((self.value - self.gu) / gg).clamp(min=0)
        return torch.minimum(eta, (1 - _CAP) / self.m.clamp(min=1e-30)), gg

    @property
    def gu(self) -> Tensor:
        return _dot(self.gradient, self.u)

    @property
    def uu(self) -> Tensor:
        return _dot(self.u, self.u)

    def settled(self, tolerance: float) -> Tensor:
        """Where the undamped next point is no further away than `tolerance` times its length."""
        eta, gg = self._multiplier()
        left = eta * eta * gg + 2 * eta * self.gu + self.uu
        return left <= tolerance**2 * self.uu

    def write(self, found: Solution, rows: Tensor) -> None:
        """Hand over the results of the margins that a mask names."""
        row = self.row[rows]
        found.point[row], found.radius[row] = self.point[rows], self.best[rows]
        found.bend[row] = self.bend[rows]

    def keep(self, rows: Tensor) -> _State:
        kept = rows.nonzero()[:, 0]
        return _State(**{name: part.index_select(0, kept) for name, part in vars(self).items()})


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
