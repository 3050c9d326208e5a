"""Adversarial training (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.training.attacks import gradient_ascent
from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective
from raycrt.training.registry import register


@register(OBJECTIVES, "pgd", uses=("radius", "ramp", "attack_steps"))
class Pgd(Objective):
    """Cross-entropy at an l2 attack by projected gradient ascent."""

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        u = gradient_ascent(self.view, x, labels, radius, self.options.attack_steps)
        attacked = self.view(x + u)
        with torch.no_grad():
            correct = self.view.plain(self.view.cast(x)).argmax(1) == labels
        return Losses(
            loss=F.cross_entropy(attacked, labels, reduction="none"),
            correct=correct,
            robust=attacked.argmax(1) == labels,
        )
