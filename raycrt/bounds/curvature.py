"""Proved curvature of all margins: separately for each pair of classes while classes are few; with
many, for all pairs at once, and then separately for each pair that may bind an image.

With v_y the rows of the last matrix, c their mean and h the last hidden layer,

    z_y - z_t = (v_y - c)^T h - (v_t - c)^T h + constant,

so that bounds for single classes, from above and from below, add up to one for every pair, which
takes a proof per class instead of one per pair. A separate proof for a pair is tighter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from raycrt.bounds.global_curvature import LayerBounds, layer_bounds, pair_upper, readout_upper
from raycrt.bounds.layers.norms import norms
from raycrt.networks.floating_point import require_plain_products
from raycrt.networks.network import Network

_Item = TypeVar("_Item")
# Iterates over items and may report progress; takes the name of the task and the items.
Watch = Callable[[str, Sequence[_Item]], Iterable[_Item]]

# Up to this many classes every pair is proved separately.
FEW_CLASSES = 20
# Binding pairs are searched on so many images and among the classes with the largest logits.
EXAMPLES, _NEAREST = 4096, 8
_IMAGES_AT_ONCE = 256
# Relative room that sums leave for a checker that proves them a second time.
_ROOM = 1 + 1e-8


def margin_curvature(
    network: Network,
    images: Tensor | None = None,
    watch: Watch = lambda name, items: items,
) -> Tensor:
    """m (classes, classes), float64: `Hess (z_y - z_t) >= -m[y, t] I` everywhere, 0 if y == t.

    Holds for the network with the stored weights in exact arithmetic. Infinite where the weights
    are not `bounded` or the bound overflows. Cost: a few eigenproblems of the smaller layer size
    for each ordered pair; with more than `FEW_CLASSES` classes, for each class and for each pair
    that may bind one of `images` (n, ...), those to be certified or similar ones. Without images,
    such a network gets only the bounds from its classes, which are up to a few times larger.
    `watch` iterates over the proofs and may show progress.
    """
    require_plain_products(network.device)
    classes = network.classes
    if not network.bounded():
        return torch.full((classes, classes), math.inf, dtype=torch.float64).fill_diagonal_(0)
    # A class that is never predicted has bias -inf, on which curvature does not depend.
    network = network.unmasked()
    bounds = layer_bounds(network)
    if classes > FEW_CLASSES:
        m = _by_classes(network, bounds, watch)
        if images is not None:
            _refine(network, bounds, m, images.flatten(1)[:EXAMPLES], watch)
        return m
    m = torch.zeros(classes, classes, dtype=torch.float64)
    pairs = [(y, t) for y in range(classes) for t in range(classes) if y != t]
    for y, t in watch("curvature of pairs of classes", pairs):
        m[y, t] = pair_upper(network, bounds, y, t)
    return m


def _by_classes(network: Network, bounds: LayerBounds, watch: Watch) -> Tensor:
    last = bounds.layers[-1]
    rows = last.matrix()
    apart = rows - rows.mean(0)
    # All rows share the computed mean, whatever its error: only the difference rounds.
    slack = apart.abs() * 2.0**-50 + norms(last).matrix_error_upper()
    low, high = apart - slack, apart + slack
    above, below = torch.zeros(2, len(rows), dtype=torch.float64)
    for k in watch("curvature of classes", range(len(rows))):
        above[k] = readout_upper(network, bounds, low[k], high[k])
        below[k] = readout_upper(network, bounds, -high[k], -low[k])
    return ((above[:, None] + below) * _ROOM).fill_diagonal_(0)


@torch.no_grad()
def _refine(network: Network, bounds: LayerBounds, m: Tensor, flat: Tensor, watch: Watch) -> None:
    """Prove separately, in `m`, each pair whose closed-form radius at an image lies below the
    radius for which that image can be certified, estimated to first order."""
    estimate = network.copied(torch.float32)
    flat = flat[torch.isfinite(flat).all(1)].float()
    parts = [_nearest_margins(estimate, x) for x in flat.split(_IMAGES_AT_ONCE)]
    label, target, value, length = (torch.cat(part) for part in zip(*parts, strict=True))
    curvature = m[label[:, None], target]
    radius = 2 * value / (length + (length**2 + 2 * curvature * value).sqrt())
    reach = (value / length).nan_to_num(0.0).amin(1, keepdim=True)
    image, place = (radius < reach).nonzero().unbind(1)
    pairs = torch.stack([label[image], target[image, place]], 1).unique(dim=0)
    for y, t in watch("curvature of pairs that may bind", pairs.tolist()):
        m[y, t] = min(float(m[y, t]), pair_upper(network, bounds, y, t))


def _nearest_margins(network: Network, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Estimates: labels (n,), the classes (n, k) with the next largest logits, and the values and
    gradient norms (n, k) of these margins."""
    trace = network.trace(x)
    top = trace.logits.topk(_NEAREST + 1, dim=1)
    label, target = top.indices[:, 0], top.indices[:, 1:]
    eye = torch.eye(network.classes, dtype=x.dtype, device=x.device)
    gradient = network.pull_back(trace.slopes, eye[label][:, None] - eye[target])
    value = top.values[:, :1] - top.values[:, 1:]
    return label.cpu(), target.cpu(), value.double().cpu(), gradient.norm(dim=2).double().cpu()
