"""Standard training."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective
from raycrt.training.registry import register


@register(OBJECTIVES, "standard")
class Standard(Objective):
    """Cross-entropy of the clean logits."""

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        logits = self.view(x)
        correct = logits.argmax(1) == labels
        return Losses(
            loss=F.cross_entropy(logits, labels, reduction="none"), correct=correct, robust=correct
        )
