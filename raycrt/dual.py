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

from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.network import Network, margin_direction

# A margin is settled when its radius rose by less than this, relatively, in `_PATIENCE` steps.
_PROGRESS = 1e-4
_PATIENCE = 3
# The active set is compacted when less than this share of it is still open.
_SHRINK = 0.8
# Multipliers stay this far, relatively, below the pole at 1/m.
_CAP = 1e-3
_BISECTIONS = 50


def radius(value: Tensor, gg: Tensor, gu: Tensor, uu: Tensor, m: Tensor) -> Tensor:
    """r(u) from f and the products g.g, g.u, u.u; all of one shape.

    Negative or zero where the point proves nothing, NaN where no real radius exists. The formula is
    evaluated as it stands; `raycrt.certifier` accounts for its rounding.
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
class Solution:
    """For each margin the best point found, `u` (n, features), and its `radius` (n,): estimates."""

    u: Tensor
    radius: Tensor


@torch.no_grad()
def solve(
    network: Network,
    x0: Tensor,
    label: Tensor,
    target: Tensor,
    m: Tensor,
    *,
    gradient: Tensor,
    value: Tensor,
    enough: Tensor,
    steps: int,
) -> Solution:
    """Look for points u of large r(u) for n margins `z_label - z_target` around x0 (n, features).

    `value` and `gradient` are those at x0, from which the iteration starts. A margin is left alone
    as soon as its radius reaches `enough` (n,), equals |u| at the boundary, or stops to grow; the
    work goes on with the others.
    """
    state = _State(
        row=torch.arange(len(x0), device=x0.device),
        x0=x0,
        direction=margin_direction(label, target, x0.new_empty(0, network.classes)),
        m=m,
        enough=enough,
        u=torch.zeros_like(x0),
        best_u=torch.zeros_like(x0),
        best=torch.zeros_like(m),
        before=torch.zeros_like(m),
        value=value,
        gradient=gradient,
        gg=_dot(gradient, gradient),
        gu=torch.zeros_like(m),
        uu=torch.zeros_like(m),
        bend=torch.zeros_like(m),
    )
    state.judge()
    u, best = torch.zeros_like(x0), state.best.clone()
    for step in range(steps):
        state.advance(network)
        state.judge()
        # On the boundary |u| is an upper bound of every radius: nothing is left to gain.
        limit = torch.where(state.value <= 0, state.uu.sqrt() * (1 - _PROGRESS), torch.inf)
        is_open = (state.best < state.enough) & (state.best < limit)
        if step % _PATIENCE == _PATIENCE - 1:
            is_open &= state.best > state.before * (1 + _PROGRESS)
            state.before = state.best
        share = float(is_open.float().mean())
        if share < _SHRINK:
            closed = ~is_open
            u[state.row[closed]] = state.best_u[closed]
            best[state.row[closed]] = state.best[closed]
            state = state.keep(is_open)
        if share == 0:
            break
    u[state.row], best[state.row] = state.best_u, state.best
    return Solution(u=u, radius=best)


@dataclass(kw_only=True)
class _State:
    """The iterates of the margins that are still open, and the products they need."""

    row: Tensor
    x0: Tensor
    direction: Tensor
    m: Tensor
    enough: Tensor
    u: Tensor
    best_u: Tensor
    best: Tensor
    before: Tensor
    value: Tensor
    gradient: Tensor
    gg: Tensor
    gu: Tensor
    uu: Tensor
    bend: Tensor

    def advance(self, network: Network) -> None:
        """A step of `u <- -eta g`: eta is the root of the linearised margin, capped below 1/m, and
        the step is damped by the curvature seen along the one before."""
        tiny = torch.finfo(self.gg.dtype).tiny
        eta = ((self.value - self.gu) / self.gg.clamp(min=tiny)).clamp(min=0)
        eta = torch.minimum(eta, (1 - _CAP) / self.m.clamp(min=1e-30))
        pull = 1 / (1 + eta * self.bend)
        keep, along = 1 - pull, -pull * eta
        # All products with the new u = keep u + along g that g and the old u give.
        g_dot_new = keep * self.gu + along * self.gg
        u_dot_new = keep * self.uu + along * self.gu
        uu = keep * u_dot_new + along * g_dot_new
        moved = (uu - 2 * u_dot_new + self.uu).clamp(min=tiny)
        old_u, old_gu = self.u, self.gu
        self.u = torch.addcmul(keep[:, None] * self.u, along[:, None], self.gradient)
        trace = network.trace(self.x0 + self.u)
        self.value = _dot(trace.logits, self.direction)
        self.gradient = network.pull_back(trace.slopes, self.direction)
        self.gg = _dot(self.gradient, self.gradient)
        self.gu = _dot(self.gradient, self.u)
        turned = self.gu - _dot(self.gradient, old_u) - g_dot_new + old_gu
        self.bend = (turned / moved).clamp(min=0)
        self.uu = uu.clamp(min=0)

    def judge(self) -> None:
        """Keep the point if it is the best so far."""
        found = radius(self.value, self.gg, self.gu, self.uu, self.m).nan_to_num(0.0, 0.0, 0.0)
        better = found > self.best
        if bool(better.all()):
            self.best_u = self.u
        else:
            self.best_u = torch.where(better[:, None], self.u, self.best_u)
        self.best = torch.maximum(self.best, found)

    def keep(self, rows: Tensor) -> _State:
        return _State(**{name: value[rows] for name, value in vars(self).items()})


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
