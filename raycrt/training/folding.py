"""Networks that are trained in place of the whole network and then folded back into it.

For speed, a network can be trained on principal coordinates of the images. A deeper network is made
from a shallower one by putting isometries in front, at whose outputs the activation is nearly
linear: global curvature bounds multiply the norms of all layers before a curved one, so layers with
hardly any curvature add hardly anything to the bound.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from raycrt.errors import require
from raycrt.networks.layers.affine import AffineMap, Dense
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import TORCH, Nonlinearity


class Subspace(nn.Module):
    """The coordinates `P (x - mean)` of flat images along the first principal directions.

    The rows of P are orthonormal. A network V on the coordinates is the network with
    `W_1 = V_1 P` on the images: `|W_1| = |V_1|`, and a ball around x in one space is mapped onto
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
        """The network on images equal to `network` on coordinates, up to the rounding of W_1."""
        first = network.layers[0]
        weight = first.matrix().double() @ self.basis
        return self._replaced(network, weight, first.offset().double() - weight @ self.mean)

    @torch.no_grad()
    def before(self, network: Network) -> Network:
        """The network on images whose first map is the projection onto the coordinates."""
        like = next(network.parameters())
        projection = _dense(self.basis, -self.basis @ self.mean, like)
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
        first = _dense(weight, bias, weight)
        parameter = next(network.parameters())
        rest = copy.deepcopy(network.layers[1:])
        whole = Network([first.to(parameter), *rest], network.nonlinearities)
        return whole.requires_grad_(parameter.requires_grad)


# A point where softplus, GELU and SiLU are nearly linear; saturating activations are so at 0.
_NEARLY_LINEAR = 6.0


@torch.no_grad()
def deepened(network: Network, layers: int, scale: float) -> Network:
    """`network` with `layers` more dense layers in front, as wide as its first; the logits nearly
    agree.

    Each new layer applies an isometry Q: its output is `c + scale Q x`, with c a point where s is
    nearly linear; the next layer removes c and scale again. Logits change by terms of the order
    `scale |x|^2 s''(c) / s'(c)` and the curvature of a margin by terms of the order
    `scale sup|s''|`; both vanish with `scale`. Where s'(c) is less than the steepest slope of s,
    as for gelu and silu, every layer multiplies the curvature by their ratio squared.
    """
    if layers == 0:
        return network
    first = network.layers[0]
    require(
        first.in_features <= first.out_features,
        "train.linear_layers needs no more inputs (or train.components) than model.width",
        inputs=first.in_features,
        width=first.out_features,
    )
    like = next(network.parameters())
    activation = network.nonlinearities[0].activation
    point = torch.tensor(_NEARLY_LINEAR if activation.slope_limits[1] else 0.0).double()
    value, slope = activation.value(point, TORCH), activation.slope(point, TORCH)
    maps: list[Dense] = []
    # The signal x is `undo (a - value)`, a the activations before the next layer.
    undo = torch.eye(first.in_features, dtype=torch.float64)
    centre = torch.zeros(first.in_features, dtype=torch.float64)
    for index in range(layers):
        isometry = _isometry(first.out_features, first.in_features, seed=index)
        weight = scale * isometry @ undo
        maps.append(_dense(weight, point - weight @ centre, like))
        undo = isometry.T / (scale * slope)
        centre = value.expand(first.out_features)
    weight = first.matrix().double().cpu() @ undo
    maps.append(_dense(weight, first.offset().double().cpu() - weight @ centre, like))
    rest = copy.deepcopy(network.layers[1:])
    width = first.out_features
    inserted = [Nonlinearity(activation=activation, active=width, width=width)] * layers
    whole = Network([*maps, *rest], [*inserted, *network.nonlinearities])
    return whole.requires_grad_(like.requires_grad)


def _isometry(rows: int, columns: int, seed: int) -> Tensor:
    """A random matrix (rows, columns) with orthonormal columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal / math.sqrt(rows)).Q


def _dense(weight: Tensor, bias: Tensor, like: Tensor) -> Dense:
    layer = Dense(weight.shape[1], weight.shape[0]).to(like)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
