"""Training objectives: a family of losses over rows, each a class with one method.

`Objective` is a module that holds the network, so that a data-parallel wrapper averages exactly the
gradients of what its forward returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.networks.network import TORCH, Network, margin_direction
from raycrt.spec import TrainSpec
from raycrt.training.folding import Subspace
from raycrt.training.precision import View
from raycrt.training.regularizer import CurvatureEstimate

# Steps of crt-all's attack that each target has for itself, the last ones.
_OWN_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Losses:
    """`loss` (n,) for each row, and what to watch: `correct` and `robust` (n,) booleans."""

    loss: Tensor
    correct: Tensor
    robust: Tensor


class Objective(nn.Module):
    """forward(images, labels, radius) -> `Losses`; `radius` (0-d) is the ramped l2 radius.

    With a subspace the network is one of its coordinates.
    """

    # Which curvatures are estimated: those of all pairs of classes, the norms only, or none.
    pairwise: ClassVar[bool | None] = None

    def __init__(self, network: Network, spec: TrainSpec, subspace: Subspace | None = None) -> None:
        super().__init__()
        self.network, self.spec, self.subspace = network, spec, subspace
        self.view = View(network, spec.precision)
        self.estimate = (
            None if self.pairwise is None else CurvatureEstimate(network, pairwise=self.pairwise)
        )

    @property
    def curvature(self) -> CurvatureEstimate:
        assert self.estimate is not None
        return self.estimate

    def before_step(self) -> None:
        """Called once before each step, outside any data-parallel wrapper."""
        self.view.refresh()
        if self.estimate is not None:
            self.estimate.update(self.network)

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        with torch.no_grad():
            x = images.flatten(1) if self.subspace is None else self.subspace(images)
        return self.losses(x, labels, radius)

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        """`forward` on flat inputs of the network."""
        raise NotImplementedError


class Standard(Objective):
    """Cross-entropy of the clean logits."""

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        logits = self.view(x)
        correct = logits.argmax(1) == labels
        return Losses(
            loss=F.cross_entropy(logits, labels, reduction="none"), correct=correct, robust=correct
        )


class Pgd(Objective):
    """Cross-entropy at an l2 attack by projected gradient ascent (Madry et al. 2018)."""

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        u = gradient_ascent(self.view, x, labels, radius, self.spec.attack_steps)
        attacked = self.view(x + u)
        with torch.no_grad():
            correct = self.view.plain(self.view.cast(x)).argmax(1) == labels
        return Losses(
            loss=F.cross_entropy(attacked, labels, reduction="none"),
            correct=correct,
            robust=attacked.argmax(1) == labels,
        )


class Ibp(Objective):
    """Interval bound propagation (Gowal et al. 2018), the first layer's interval that of a ball.

    The loss is the mean of the clean cross-entropy and that of the lower bounds of all margins.
    """

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        logits = self.view(x)
        lower = interval_margins(self.network, x, labels, radius)
        worst = F.softplus(torch.logsumexp(_wrong(-lower, labels), dim=1))
        return Losses(
            loss=(F.cross_entropy(logits, labels, reduction="none") + worst) / 2,
            correct=logits.argmax(1) == labels,
            robust=(_wrong(-lower, labels) < 0).all(1),
        )


class Crt(Objective):
    """The paper's CRT: cross-entropy at the dual attack on the runner-up, plus gamma K(y, t).

    Without a radius and a gamma it is standard training.
    """

    pairwise = False

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        with torch.no_grad():
            trace = self.view.plain.trace(self.view.cast(x))
            target = _wrong(trace.logits, labels).argmax(1)
            bound = self.curvature.bound(self.network, labels, target)
        u = attack(
            self.view.plain,
            x,
            labels,
            target,
            bound,
            radius,
            self.spec.attack_steps,
            slopes=trace.slopes,
        )
        attacked = self.view(x + u)
        loss = F.cross_entropy(attacked, labels, reduction="none")
        if self.spec.gamma:
            loss = loss + self.spec.gamma * self.curvature.bound(self.network, labels, target)
        return Losses(
            loss=loss,
            correct=trace.logits.argmax(1) == labels,
            robust=attacked.argmax(1) == labels,
        )


class CrtAll(Objective):
    """The dual margins of the worst classes, a lower bound of the margin over the ball.

    For each of `targets` classes the attack point x0 + u gives
    `F_t = f_t(x0 + u) - m/2 max(0, radius^2 - |u|^2)`, and the loss is cross-entropy over
    {0, -F_t}, plus gamma times the curvature m of the worst pair. The attack's steps before the
    last `_OWN_STEPS` are taken against the worst class alone; all targets start where they end.
    """

    pairwise = True

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        m = self.curvature.margins(self.network)
        k = min(self.spec.targets, self.network.classes - 1)
        with torch.no_grad():
            trace = self.view.plain.trace(self.view.cast(x))
            target = _wrong(trace.logits, labels).topk(k, dim=1).indices
            plain, slopes = self.view.plain, trace.slopes
            own = min(self.spec.attack_steps, _OWN_STEPS)
            if shared := self.spec.attack_steps - own:
                worst = target[:, 0]
                bound = m[labels, worst].detach()
                start = attack(plain, x, labels, worst, bound, radius, shared, slopes=slopes)
                slopes = plain.slopes(self.view.cast(x + start))
            repeated = [slope.repeat_interleave(k, 0) for slope in slopes]
            rows, label = x.repeat_interleave(k, 0), labels.repeat_interleave(k)
            bound = m[label, target.flatten()].detach()
            u = attack(plain, rows, label, target.flatten(), bound, radius, own, slopes=repeated)
            shortfall = (radius.square() - u.square().sum(1)).clamp(min=0)
        attacked = self.view(rows + u)
        curvature = m[labels[:, None], target]
        margin = (attacked * margin_direction(label, target.flatten(), attacked)).sum(1)
        lower = margin.view(-1, k) - curvature / 2 * shortfall.view(-1, k)
        loss = F.softplus(torch.logsumexp(-lower, dim=1))
        if self.spec.gamma:
            loss = loss + self.spec.gamma * curvature[:, 0]
        return Losses(
            loss=loss,
            correct=trace.logits.argmax(1) == labels,
            robust=(lower.detach() > 0).all(1),
        )


OBJECTIVES: dict[str, type[Objective]] = {
    "standard": Standard,
    "pgd": Pgd,
    "ibp": Ibp,
    "crt": Crt,
    "crt-all": CrtAll,
}


def build(network: Network, spec: TrainSpec, subspace: Subspace | None = None) -> Objective:
    """The objective that `spec` names, around `network`."""
    return OBJECTIVES[spec.objective](network, spec, subspace)


@torch.no_grad()
def attack(
    network: Network,
    x: Tensor,
    label: Tensor,
    target: Tensor,
    m: Tensor,
    radius: Tensor,
    steps: int,
    *,
    slopes: Sequence[Tensor] | None = None,
) -> Tensor:
    """u (n, features), |u| <= radius: the dual attack on z_label - z_target around flat inputs x.

    The fixed point of `u <- -g / max(|g| / radius, m)` minimises the Lagrangian of the margin over
    the ball when its multiplier lies above m. `slopes` are those where the first gradient is taken,
    x itself unless they are given. Products are in the type of the network's weights, u is in that
    of x.
    """
    low = next(network.parameters()).dtype
    direction = margin_direction(label, target, x.new_zeros(0, network.classes)).to(low)
    u = torch.zeros_like(x)
    for step in range(steps):
        if step or slopes is None:
            slopes = network.slopes((x + u).to(low))
        g = network.pull_back(slopes, direction).to(x.dtype)
        scale = torch.maximum(g.norm(dim=1) / radius.clamp(min=1e-12), m).clamp(min=1e-30)
        u = g / -scale[:, None]
    return u


@torch.no_grad()
def gradient_ascent(view: View, x: Tensor, label: Tensor, radius: Tensor, steps: int) -> Tensor:
    """u (n, features), |u| <= radius: steps of length `2.5 radius / steps` that raise cross-entropy
    around flat inputs x, each followed by the projection onto the ball."""
    u = torch.zeros_like(x)
    for _ in range(steps):
        trace = view.plain.trace(view.cast(x + u))
        right = F.one_hot(label, trace.logits.shape[1])
        g = view.plain.pull_back(trace.slopes, trace.logits.softmax(1) - right.to(trace.logits))
        u = u + 2.5 / steps * radius * F.normalize(g.to(x.dtype), dim=1)
        u = u * (radius / u.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
    return u


def interval_margins(network: Network, x: Tensor, label: Tensor, radius: Tensor) -> Tensor:
    """Differentiable lower bounds (n, classes) of `z_label - z_t` on the balls around flat x.

    Exact in the first layer, where row w reaches `radius |w|`; boxes from there on.
    """
    activation = network.activation
    first, *inner, last = network.layers
    middle, reach = first(x), radius * first.row_norms().expand(len(x), -1)
    for layer in [*inner, None]:
        if activation.slope_range[0] >= 0:
            low, high = (activation.value(z, TORCH) for z in (middle - reach, middle + reach))
            middle, reach = (low + high) / 2, (high - low) / 2
        else:
            middle, reach = activation.value(middle, TORCH), activation.slope_bound * reach
        if layer is not None:
            middle, reach = layer(middle), layer.linear_absolute(reach)
    logits, weight = last(middle), last.matrix()
    pairs = (weight[:, None] - weight).abs()
    spread = torch.einsum("nj,ytj->nyt", reach, pairs)[torch.arange(len(x)), label]
    return logits.gather(1, label[:, None]) - logits - spread


def _wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the labelled class taken out of every maximum."""
    return logits.scatter(1, labels[:, None], -torch.inf)
