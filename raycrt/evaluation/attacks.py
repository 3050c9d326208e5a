"""Attacks: upper bounds of adversarial distances, to compare certificates with.

A certificate is a lower bound of the distance to the nearest image of another class; an attack
finds such an image and gives an upper bound. Where the two meet, both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.data.values.images import batch_of_images, fits
from raycrt.errors import require
from raycrt.networks.hooks import require_plain
from raycrt.networks.network import Network, margin_direction

_BISECTIONS = 30


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """`distance` (n,) float64 and `perturbation` (n, features): `image + perturbation` is predicted
    as another class than the image. Infinite and zero where none is found."""

    distance: Tensor
    perturbation: Tensor


@torch.no_grad()
def attack(network: Network, images: Tensor, *, steps: int = 50, classes: int = 9) -> Adversarial:
    """The nearest adversarial perturbation found for `images` (n, ...), not clipped to [0, 1].

    For each of the `classes` margins that are nearest by the linearised distance, the projection
    onto the linearised boundary `u <- -(f - g.u) g / |g|^2` is repeated `steps` times; points
    beyond the boundary are moved back to it by bisection. All is computed in float64, and every
    distance is that of a point whose prediction was observed to differ.
    """
    require(steps > 0, "steps > 0", steps=steps)
    require(classes > 0, "classes > 0", classes=classes)
    require_plain(network)
    images = fits(batch_of_images(images), features=network.features, device=network.device)
    network = network.in_float64()
    x = images.flatten(1).double()
    trace = network.trace(x)
    label = trace.logits.argmax(1)
    n, total = trace.logits.shape
    rows = torch.arange(n, device=x.device)
    eye = torch.eye(total, dtype=x.dtype, device=x.device)
    jacobian = network.pull_back(trace.slopes, eye.expand(n, -1, -1))
    margins = trace.logits[rows, label][:, None] - trace.logits
    slopes = (jacobian[rows, label][:, None] - jacobian).norm(dim=2).clamp(min=1e-300)
    linear = (margins / slopes).scatter(1, label[:, None], torch.inf)
    best = torch.zeros_like(x)
    distance = torch.full_like(x[:, 0], torch.inf)
    for target in linear.argsort(1)[:, : min(classes, total - 1)].T:
        for u, logits in steps_to(network, x, label, target, steps):
            length = u.norm(dim=1)
            nearer = (logits.argmax(1) != label) & (length < distance)
            best[nearer], distance[nearer] = u[nearer], length[nearer]
    found = torch.isfinite(distance)
    if bool(found.any()):
        there = label[found]
        best[found] = draw_back(
            x[found], best[found], lambda points: network(points).argmax(1) != there
        )
        distance[found] = best[found].norm(dim=1)
    return Adversarial(distance=distance, perturbation=best)


def steps_to(
    network: Network, x: Tensor, label: Tensor, target: Tensor, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Perturbations u (n, features) of flat x towards `target`, with the logits at x + u.

    The first is 0; each other is the projection onto the boundary linearised at the one before.
    """
    u = torch.zeros_like(x)
    for _ in range(steps + 1):
        trace = network.trace(x + u)
        yield u, trace.logits
        g = network.pull_back(trace.slopes, margin_direction(label, target, trace.logits))
        own, other = trace.logits.gather(1, torch.stack([label, target], 1)).unbind(1)
        f = own - other
        wanted = (f - (g * u).sum(1)).clamp(min=0) / g.square().sum(1).clamp(min=1e-300)
        u = -wanted[:, None] * g * (1 + 1e-9)


def draw_back(x: Tensor, u: Tensor, crossed: Callable[[Tensor], Tensor]) -> Tensor:
    """u scaled down by bisection to the shortest multiple found at which x + u has `crossed`."""
    low = torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)
    high = torch.ones_like(low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = crossed(x + middle * u)[:, None]
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return high * u
