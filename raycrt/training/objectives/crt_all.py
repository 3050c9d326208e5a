"""Curvature-based robust training against the worst classes, not only the runner-up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.networks.network import margin_direction
from raycrt.training.attacks import dual_attack
from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective, without_label
from raycrt.training.registry import register

# Number of final attack steps that are taken separately for each target class.
_OWN_STEPS = 2


@register(OBJECTIVES, "crt-all", uses=("radius", "ramp", "gamma", "targets", "attack_steps"))
class CrtAll(Objective):
    """The dual margins of the worst classes, a lower bound of the margin over the ball.

    For each of `targets` classes the attack point x0 + u gives
    `F_t = f_t(x0 + u) - m/2 max(0, radius^2 - |u|^2)`, and the loss is cross-entropy over
    {0, -F_t}, plus gamma times the curvature m of the worst pair. The attack's steps before the
    last `_OWN_STEPS` are taken against the worst class alone; all targets start from their result.
    """

    pairwise = True

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        steps = self.options.attack_steps
        m = self.curvature.margins(self.network)
        k = min(self.options.targets, self.network.classes - 1)
        with torch.no_grad():
            trace = self.view.plain.trace(self.view.cast(x))
            target = without_label(trace.logits, labels).topk(k, dim=1).indices
            plain, slopes = self.view.plain, trace.slopes
            own = min(steps, _OWN_STEPS)
            if shared := steps - own:
                worst = target[:, 0]
                bound = m[labels, worst].detach()
                start = dual_attack(plain, x, labels, worst, bound, radius, shared, slopes=slopes)
                slopes = plain.slopes(self.view.cast(x + start))
            repeated = [slope.repeat_interleave(k, 0) for slope in slopes]
            rows, label = x.repeat_interleave(k, 0), labels.repeat_interleave(k)
            other = target.flatten()
            bound = m[label, other].detach()
            u = dual_attack(plain, rows, label, other, bound, radius, own, slopes=repeated)
            shortfall = (radius.square() - u.square().sum(1)).clamp(min=0)
        attacked = self.view(rows + u)
        curvature = m[labels[:, None], target]
        margin = (attacked * margin_direction(label, other, attacked)).sum(1)
        lower = margin.view(-1, k) - curvature / 2 * shortfall.view(-1, k)
        loss = F.softplus(torch.logsumexp(-lower, dim=1))
        if self.options.gamma:
            loss = loss + self.options.gamma * curvature[:, 0]
        return Losses(
            loss=loss,
            correct=trace.logits.argmax(1) == labels,
            robust=(lower.detach() > 0).all(1),
        )
