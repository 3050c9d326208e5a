"""Principal coordinates of images, on which a network can be trained for speed."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from raycrt.errors import require
from raycrt.networks.layers.affine import AffineMap
from raycrt.networks.network import Network
from raycrt.training.folding.dense import dense
from raycrt.training.folding.symmetry import Involution


class Subspace(nn.Module):
    """The coordinates `P (x - mean)` of flat images along the first principal directions.

    The rows of P are orthonormal. A network V on the coordinates is the network with
    `W_1 = V_1 P` on the images: `|W_1| = |V_1|`, and a ball around x in one space is mapped onto
    the ball of the same radius in the other, so that margins, curvature and attacks are the same.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, images: Tensor, components: int, mirror: Involution | None = None) -> None:
        """The directions of most spread of `images` (n, ...); with `mirror` those of the images and
        their mirror images together, each of them even or odd under it."""
        super().__init__()
        rows = images.flatten(1).double()
        require(
            components <= rows.shape[1],
            "train.components <= pixels of an image",
            components=components,
            pixels=rows.shape[1],
        )
        mean = rows.mean(0)
        if mirror is None:
            directions = _principal(rows - mean)[1]
        else:
            mean = (mean + mean[mirror.order]) / 2
            directions = _even_or_odd(rows - mean, mirror.order)
        basis = directions[:components].contiguous()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    @property
    def components(self) -> int:
        return len(self.basis)

    def mirrored(self, mirror: Involution) -> Involution:
        """`mirror` of the images as a map of the coordinates, which changes the signs of the odd
        ones. The mean must be even, and every direction even or odd."""
        signs = (self.basis[:, mirror.order] * self.basis).sum(1).round()
        return Involution(torch.arange(len(signs)), signs.float())

    def forward(self, images: Tensor) -> Tensor:
        """Coordinates (n, components) of images (n, ...), in the type of the images."""
        basis = self.basis.to(images.dtype)
        return (images.flatten(1) - self.mean.to(images.dtype)) @ basis.T

    @torch.no_grad()
    def fold(self, network: Network) -> Network:
        """The network on images equal to `network` on coordinates, up to the rounding of W_1."""
        first = network.layers[0]
        weight = first.matrix().double() @ self.basis
        return self._replaced(network, weight, first.offset().double() - weight @ self.mean)

    @torch.no_grad()
    def before(self, network: Network) -> Network:
        """The network on images whose first map is the projection onto the coordinates."""
        like = next(network.parameters())
        projection = dense(self.basis, -self.basis @ self.mean, like)
        trained: list[AffineMap] = list(copy.deepcopy(network.maps))  # type: ignore[arg-type]
        whole = Network([projection, *trained], [None, *network.between])
        return whole.requires_grad_(like.requires_grad)

    @torch.no_grad()
    def unfold(self, network: Network) -> Network:
        """The network on coordinates equal to `network` on images of this subspace."""
        first = network.layers[0]
        weight = first.matrix().double()
        return self._replaced(
            network, weight @ self.basis.T, first.offset().double() + weight @ self.mean
        )

    def _replaced(self, network: Network, weight: Tensor, bias: Tensor) -> Network:
        first = dense(weight, bias, weight)
        parameter = next(network.parameters())
        rest = copy.deepcopy(network.layers[1:])
        whole = Network([first.to(parameter), *rest], network.nonlinearities)
        return whole.requires_grad_(parameter.requires_grad)


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Spreads (d,) of centred rows (n, d) in descending order, and their directions (d, d)."""
    spreads, directions = torch.linalg.eigh(rows.T @ rows)
    return spreads.flip(0), directions.flip(1).T


def _even_or_odd(rows: Tensor, order: Tensor) -> Tensor:
    """The principal directions (d, d) of the rows and their mirror images `rows[:, order]`."""
    pixels = torch.eye(len(order), dtype=rows.dtype)
    left = torch.arange(len(order)) < order
    pair, other = pixels[left] / math.sqrt(2), pixels[order[left]] / math.sqrt(2)
    middle = pixels[torch.arange(len(order)) == order]
    bases = [torch.cat([pair + other, middle]), pair - other]
    found = [(basis, *_principal(rows @ basis.T)) for basis in bases]
    directions = torch.cat([directions @ basis for basis, _, directions in found])
    return directions[torch.cat([spreads for _, spreads, _ in found]).argsort(descending=True)]
