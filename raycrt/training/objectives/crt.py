"""The paper's curvature-based robust training: against the runner-up class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.training.attacks import dual_attack
from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective, without_label
from raycrt.training.registry import register


@register(OBJECTIVES, "crt", uses=("radius", "ramp", "gamma", "attack_steps"))
class Crt(Objective):
    """Cross-entropy at the dual attack on the runner-up, plus gamma K(y, t).

    Without a radius and a gamma it is standard training.
    """

    pairwise = False

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        with torch.no_grad():
            trace = self.view.plain.trace(self.view.cast(x))
            target = without_label(trace.logits, labels).argmax(1)
            bound = self.curvature.bound(self.network, labels, target)
        u = dual_attack(
            self.view.plain,
            x,
            labels,
            target,
            bound,
            radius,
            self.options.attack_steps,
            slopes=trace.slopes,
        )
        attacked = self.view(x + u)
        loss = F.cross_entropy(attacked, labels, reduction="none")
        if self.options.gamma:
            loss = loss + self.options.gamma * self.curvature.bound(self.network, labels, target)
        return Losses(
            loss=loss,
            correct=trace.logits.argmax(1) == labels,
            robust=attacked.argmax(1) == labels,
        )
