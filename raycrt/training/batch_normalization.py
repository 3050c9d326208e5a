"""Statistics of batch normalisation: running means of those of the batches, used in training too.

Every step is taken with the statistics that evaluation would use, so that the curvature which the
regulariser sees is that of the network which is certified.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raycrt.networks.layers.diagonal import Normalization
from raycrt.networks.network import Network

# The share of a batch in the running means, except at the beginning, where all batches count alike.
_SHARE = 0.1


@torch.no_grad()
def update_statistics(
    network: Network, inputs: Tensor, step: int, total: Callable[[Tensor], Tensor]
) -> None:
    """Move the statistics of every `Normalization` towards those of its inputs, where the network
    has `inputs` (n, ...). `step` counts from 0; `total` sums over the workers, which share a
    batch, so that all have the same statistics."""
    share = max(_SHARE, 1 / (step + 1))
    last = max((k for k, layer in enumerate(network.maps) if _normalizations(layer)), default=-1)
    hooks = [
        each.register_forward_pre_hook(lambda own, given: _update(own, given[0], share, total))
        for each in _normalizations(network)
    ]
    z = inputs.flatten(1)
    try:
        for layer, after in zip(network.maps[: last + 1], network.between, strict=False):
            z = layer(z)
            z = z if after is None else after.value(z)
    finally:
        for hook in hooks:
            hook.remove()


def _normalizations(part: nn.Module) -> list[Normalization]:
    return [each for each in part.modules() if isinstance(each, Normalization)]


def _update(
    layer: Normalization, z: Tensor, share: float, total: Callable[[Tensor], Tensor]
) -> None:
    x = z.double().reshape(len(z), len(layer.mean), layer.positions)
    count = x.new_full((x.shape[1],), len(z) * layer.positions)
    rows, sums, squares = total(torch.stack([count, x.sum((0, 2)), x.square().sum((0, 2))]))
    mean = sums / rows
    variance = (squares / rows - mean.square()).clamp(min=0)
    layer.mean.lerp_(mean.to(layer.mean), share)
    layer.variance.lerp_(variance.to(layer.variance), share)
