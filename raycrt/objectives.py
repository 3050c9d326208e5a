"""Training objectives: a family of losses over rows, each a class with one method.

`Objective` is a module that holds the network, so that a data-parallel wrapper averages exactly the
gradients of what its forward returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycrt.network import Network, margin_direction
from raycrt.regularizer import CurvatureEstimate
from raycrt.spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class Losses:
    """`loss` (n,) for each row, and what to watch: `correct` and `robust` (n,) booleans."""

    loss: Tensor
    correct: Tensor
    robust: Tensor


class Objective(nn.Module):
    """forward(images, labels, radius) -> `Losses`; `radius` (0-d) is the ramped l2 radius."""

    def __init__(self, network: Network, spec: TrainSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec

    def before_step(self) -> None:
        """Called once before each step, outside any data-parallel wrapper."""

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        raise NotImplementedError


class Standard(Objective):
    """Cross-entropy of the clean logits."""

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        logits = self.network(images)
        correct = logits.argmax(1) == labels
        return Losses(
            loss=F.cross_entropy(logits, labels, reduction="none"), correct=correct, robust=correct
        )


class Crt(Objective):
    """The paper's CRT: cross-entropy at the dual attack on the runner-up, plus gamma K(y, t).

    Without a radius and a gamma it is standard training.
    """

    def __init__(self, network: Network, spec: TrainSpec) -> None:
        super().__init__(network, spec)
        self.estimate = CurvatureEstimate(network, pairwise=False)

    def before_step(self) -> None:
        self.estimate.update(self.network)

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        x = images.flatten(1)
        with torch.no_grad():
            logits = self.network(x)
            target = _wrong(logits, labels).argmax(1)
            bound = self.estimate.bound(self.network, labels, target)
            u = attack(self.network, x, labels, target, bound, radius, self.spec.attack_steps)
        attacked = self.network(x + u)
        loss = F.cross_entropy(attacked, labels, reduction="none")
        if self.spec.gamma:
            loss = loss + self.spec.gamma * self.estimate.bound(self.network, labels, target)
        return Losses(
            loss=loss, correct=logits.argmax(1) == labels, robust=attacked.argmax(1) == labels
        )


class CrtAll(Objective):
    """The dual margins of the worst classes, a lower bound of the margin over the ball.

    For each of `targets` classes the attack point x0 + u gives
    `F_t = f_t(x0 + u) - m/2 max(0, radius^2 - |u|^2)`, and the loss is cross-entropy over
    {0, -F_t}, plus gamma times the curvature m of the worst pair.
    """

    def __init__(self, network: Network, spec: TrainSpec) -> None:
        super().__init__(network, spec)
        self.estimate = CurvatureEstimate(network, pairwise=True)

    def before_step(self) -> None:
        self.estimate.update(self.network)

    def forward(self, images: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        x = images.flatten(1)
        m = self.estimate.margins(self.network)
        k = min(self.spec.targets, self.network.classes - 1)
        with torch.no_grad():
            logits = self.network(x)
            target = _wrong(logits, labels).topk(k, dim=1).indices
            rows, label = x.repeat_interleave(k, 0), labels.repeat_interleave(k)
            pair = m[label, target.flatten()].detach()
            u = attack(
                self.network, rows, label, target.flatten(), pair, radius, self.spec.attack_steps
            )
            shortfall = (radius.square() - u.square().sum(1)).clamp(min=0)
        attacked = self.network(rows + u)
        curvature = m[labels[:, None], target]
        margin = (attacked * margin_direction(label, target.flatten(), attacked)).sum(1)
        lower = margin.view(-1, k) - curvature / 2 * shortfall.view(-1, k)
        loss = F.softplus(torch.logsumexp(-lower, dim=1))
        if self.spec.gamma:
            loss = loss + self.spec.gamma * curvature[:, 0]
        return Losses(
            loss=loss, correct=logits.argmax(1) == labels, robust=(lower.detach() > 0).all(1)
        )


OBJECTIVES: dict[str, type[Objective]] = {"standard": Standard, "crt": Crt, "crt-all": CrtAll}


def build(network: Network, spec: TrainSpec) -> Objective:
    """The objective that `spec` names, around `network`."""
    return OBJECTIVES[spec.objective](network, spec)


@torch.no_grad()
def attack(
    network: Network,
    x: Tensor,
    label: Tensor,
    target: Tensor,
    m: Tensor,
    radius: Tensor,
    steps: int,
) -> Tensor:
    """u (n, features), |u| <= radius: the dual attack on z_label - z_target around flat inputs x.

    The fixed point of `u <- -g / max(|g| / radius, m)` minimises the Lagrangian of the margin over
    the ball when its multiplier lies above m.
    """
    u = torch.zeros_like(x)
    for _ in range(steps):
        trace = network.trace(x + u)
        g = network.pull_back(trace.slopes, margin_direction(label, target, trace.logits))
        length = g.norm(dim=1)
        scale = torch.maximum(length / radius.clamp(min=1e-12), m).clamp(min=1e-30)
        u = -g / scale[:, None]
    return u


def _wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with the labelled class taken out of every maximum."""
    return logits.scatter(1, labels[:, None], -torch.inf)
