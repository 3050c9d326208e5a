"""Networks of dense layers that give an image and its mirror image the same logits.

Their weights are tied. With M the mirror map of the inputs,

    W_1 = [V; V M],    W_k = [A B; B A],    W_L = [C C],    b_k = [d; d],

so that the mirror image swaps the two halves of every hidden layer, and the logits do not change.
The whole network is an ordinary one, and its margins and curvature are bounded as any other's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raycrt.networks.network import Network
from raycrt.training.folding.dense import dense


@dataclass(frozen=True)
class Involution:
    """A map of vectors that is its own inverse: `x -> signs * x[order]`."""

    order: Tensor
    signs: Tensor

    @staticmethod
    def mirror(shape: Sequence[int]) -> Involution:
        """Left and right of flat images of `shape` (..., width) exchanged."""
        order = torch.arange(math.prod(shape)).view(*shape).flip(-1).flatten()
        return Involution(order, torch.ones(len(order)))

    @staticmethod
    def swap(width: int) -> Involution:
        """The two halves of a hidden layer exchanged."""
        return Involution(torch.arange(width).roll(width // 2), torch.ones(width))


class _Equivariant(nn.Module):
    """The matrix [V; V M] in place of its upper half V."""

    order: Tensor
    signs: Tensor

    def __init__(self, inputs: Involution) -> None:
        super().__init__()
        self.register_buffer("order", inputs.order)
        self.register_buffer("signs", inputs.signs)

    def forward(self, half: Tensor) -> Tensor:
        return torch.cat([half, half[:, self.order] * self.signs.to(half.dtype)])

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole[: len(whole) // 2].clone()


class _Twice(nn.Module):
    """A tensor that is its first half, along the last dimension, twice."""

    def forward(self, half: Tensor) -> Tensor:
        return torch.cat([half, half], -1)

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole[..., : whole.shape[-1] // 2].clone()


def tie(network: Network, inputs: Involution) -> None:
    """Tie the weights of `network`, of dense layers of even width, so that its logits at x and at
    `inputs` of x agree. The upper halves keep their weights, and alone are its parameters."""
    *hidden, last = network.layers
    for layer in hidden:
        parametrize.register_parametrization(layer, "weight", _Equivariant(inputs))
        parametrize.register_parametrization(layer, "bias", _Twice())
        inputs = Involution.swap(layer.out_features)
    parametrize.register_parametrization(last, "weight", _Twice())


@torch.no_grad()
def untied(network: Network) -> Network:
    """The network with the same matrices, each of them a weight."""
    like = next(network.parameters())
    maps = [dense(layer.matrix(), layer.offset(), like) for layer in network.layers]
    return Network(maps, network.nonlinearities).requires_grad_(like.requires_grad)
