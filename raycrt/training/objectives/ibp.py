"""Interval bound propagation (Gowal et al. 2018), exact on the l2 ball in the first layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.networks.network import Network
from raycrt.training.objectives.objective import OBJECTIVES, Losses, Objective, without_label
from raycrt.training.registry import register


@register(OBJECTIVES, "ibp", uses=("radius", "ramp"))
class Ibp(Objective):
    """The mean of the clean cross-entropy and that of the lower bounds of all margins."""

    def losses(self, x: Tensor, labels: Tensor, radius: Tensor) -> Losses:
        logits = self.view(x)
        lower = interval_margins(self.network, x, labels, radius)
        worst = F.softplus(torch.logsumexp(without_label(-lower, labels), dim=1))
        return Losses(
            loss=(F.cross_entropy(logits, labels, reduction="none") + worst) / 2,
            correct=logits.argmax(1) == labels,
            robust=(without_label(-lower, labels) < 0).all(1),
        )


def interval_margins(network: Network, x: Tensor, label: Tensor, radius: Tensor) -> Tensor:
    """Differentiable lower bounds (n, classes) of `z_label - z_t` on the balls around flat x.

    Exact in the first layer, where row w reaches `radius |w|`; boxes from there on.
    """
    first, *inner, last = network.layers
    middle, reach = first(x), radius * first.row_norms().expand(len(x), -1)
    for layer, nonlinearity in zip([*inner, None], network.nonlinearities, strict=True):
        if nonlinearity.activation.slope_range[0] >= 0:
            low, high = (nonlinearity.value(z) for z in (middle - reach, middle + reach))
            middle, reach = (low + high) / 2, (high - low) / 2
        else:
            middle, reach = nonlinearity.value(middle), nonlinearity.slope_bound * reach
        if layer is not None:
            middle, reach = layer(middle), layer.linear_absolute(reach)
    logits, weight = last(middle), last.matrix()
    pairs = (weight[:, None] - weight).abs()
    spread = torch.einsum("nj,ytj->nyt", reach, pairs)[torch.arange(len(x)), label]
    return logits.gather(1, label[:, None]) - logits - spread
