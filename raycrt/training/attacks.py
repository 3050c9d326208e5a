"""Attacks used in training: points of the ball at which losses are evaluated.

They are never part of a certificate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.networks.network import Network, margin_direction
from raycrt.training.precision import View


@torch.no_grad()
def dual_attack(
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
    the ball when its multiplier lies above m. The first gradient is taken at `slopes`, by default
    those at x. Products have the dtype of the network's weights, u that of x.
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
