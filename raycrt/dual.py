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


def radius(value: Tensor, gradient: Tensor, m: Tensor, u: Tensor | None = None) -> Tensor:
    """r(u) for rows of margins: `value` (n,), `gradient` and `u` (n, features), `m` (n,).

    Negative or zero where the point proves nothing; NaN where no real radius exists. The formula
    is evaluated as it stands, without its rounding: `raycrt.certify` accounts for that.
    """
    if u is None:
        length = gradient.norm(dim=-1)
        return 2 * value / (length + (length.square() + 2 * m * value).sqrt())
    numerator = 2 * (value - (gradient * u).sum(-1)) - m * u.square().sum(-1)
    reach = (gradient.square().sum(-1) + 2 * m * value).sqrt()
    return numerator / ((gradient + m[..., None] * u).norm(dim=-1) + reach)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """For each margin the best point found: `u` (n, features), its `radius` (n,), estimates only.

    `attacked` (n,) is the smallest |u| met at which the margin was not positive, else infinity.
    """

    u: Tensor
    radius: Tensor
    attacked: Tensor


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
    as soon as its radius reaches `enough` (n,), meets an attack found on it, or stops to grow; the
    work goes on with the others. Steps are of the fixed point `u <- -eta g`, `eta` the root of the
    linearised margin capped below 1/m, damped by the curvature seen along the last step.
    """
    n = len(x0)
    best_u = torch.zeros_like(x0)
    best = radius(value, gradient, m).nan_to_num(0.0, 0.0, 0.0)
    attacked = torch.full_like(best, torch.inf)
    active = torch.arange(n, device=x0.device)
    state = _State(
        x0=x0,
        direction=margin_direction(label, target, x0.new_empty(0, network.classes)),
        m=m,
        enough=enough,
        u=torch.zeros_like(x0),
        value=value,
        gradient=gradient,
        before=best.clone(),
    )
    for step in range(steps):
        state.advance(network)
        r = radius(state.value, state.gradient, state.m, state.u).nan_to_num(0.0, 0.0, 0.0)
        length = state.u.norm(dim=-1)
        beyond = torch.where(state.value <= 0, length, torch.inf)
        attacked[active] = torch.minimum(attacked[active], beyond)
        better = r > best[active]
        rows = active[better]
        best[rows], best_u[rows] = r[better], state.u[better]
        now = best[active]
        open_ = (now < state.enough) & (now < attacked[active] * (1 - _PROGRESS))
        if step % _PATIENCE == _PATIENCE - 1:
            open_ &= now > state.before * (1 + _PROGRESS)
            state.before = now.clone()
        if not bool(open_.any()):
            break
        if float(open_.float().mean()) < _SHRINK:
            active = active[open_]
            state = state.keep(open_)
    return Solution(u=best_u, radius=best, attacked=attacked)


# The active set is compacted when less than this share of it is still open.
_SHRINK = 0.8


@dataclass(kw_only=True)
class _State:
    """The iterates of the margins that are still open."""

    x0: Tensor
    direction: Tensor
    m: Tensor
    enough: Tensor
    u: Tensor
    value: Tensor
    gradient: Tensor
    before: Tensor
    bend: Tensor | None = None

    def advance(self, network: Network) -> None:
        g = self.gradient
        square = g.square().sum(-1).clamp(min=torch.finfo(g.dtype).tiny)
        eta = (self.value - (g * self.u).sum(-1)) / square
        eta = torch.minimum(eta.clamp(min=0), (1 - _CAP) / self.m.clamp(min=1e-30))
        bend = torch.zeros_like(eta) if self.bend is None else self.bend
        damping = 1 / (1 + eta * bend)
        du = damping[:, None] * (-eta[:, None] * g - self.u)
        self.u = self.u + du
        trace = network.trace(self.x0 + self.u)
        self.value = (trace.logits * self.direction).sum(-1)
        self.gradient = network.pull_back(trace.slopes, self.direction)
        moved = du.square().sum(-1).clamp(min=torch.finfo(g.dtype).tiny)
        self.bend = (((self.gradient - g) * du).sum(-1) / moved).clamp(min=0)

    def keep(self, rows: Tensor) -> _State:
        return _State(
            **{
                name: value[rows] if isinstance(value, Tensor) else value
                for name, value in vars(self).items()
            }
        )


# Multipliers stay this far, relatively, below the pole at 1/m.
_CAP = 1e-3
