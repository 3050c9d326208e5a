"""Training on the directions in which images differ, for speed; the model is folded back whole."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from raycrt.affine import Dense
from raycrt.errors import require
from raycrt.network import Network


class Subspace(nn.Module):
    """The coordinates `P (x - mean)` of flat images along the first principal directions.

    The rows of P are orthonormal. A network V of the coordinates is the network with
    `W_1 = V_1 P` of the images: `|W_1| = |V_1|`, and a ball around x in one space is mapped onto
    the ball of the same radius in the other, so that margins, curvature and attacks are the same.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, images: Tensor, components: int) -> None:
        super().__init__()
        rows = images.flatten(1).double()
        require(
            components <= rows.shape[1],
            "train.components <= pixels of an image",
            components=components,
            pixels=rows.shape[1],
        )
        centred = rows - rows.mean(0)
        directions = torch.linalg.eigh(centred.T @ centred).eigenvectors
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("basis", directions.flip(1)[:, :components].T.contiguous())

    @property
    def components(self) -> int:
        return len(self.basis)

    def forward(self, images: Tensor) -> Tensor:
        """Coordinates (n, components) of images (n, ...), in the type of the images."""
        basis = self.basis.to(images.dtype)
        return (images.flatten(1) - self.mean.to(images.dtype)) @ basis.T

    @torch.no_grad()
    def fold(self, network: Network) -> Network:
        """The network of images that `network` of coordinates is, but for the rounding of W_1."""
        first = network.layers[0]
        weight = first.matrix().double() @ self.basis
        return self._replaced(network, weight, first.offset().double() - weight @ self.mean)

    @torch.no_grad()
    def unfold(self, network: Network) -> Network:
        """The network of coordinates that `network` is on images of this subspace."""
        first = network.layers[0]
        weight = first.matrix().double()
        return self._replaced(
            network, weight @ self.basis.T, first.offset().double() + weight @ self.mean
        )

    def _replaced(self, network: Network, weight: Tensor, bias: Tensor) -> Network:
        first = Dense(weight.shape[1], weight.shape[0]).to(weight)
        first.weight.copy_(weight)
        first.bias.copy_(bias)
        parameter = next(network.parameters())
        rest = copy.deepcopy(network.layers[1:])
        whole = Network([first.to(parameter), *rest], network.activation)
        return whole.requires_grad_(parameter.requires_grad)
