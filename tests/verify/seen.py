"""A network as the checker sees it."""

from __future__ import annotations

from raycrt.networks.network import Network
from raycrt.verify.model import Model


def seen(network: Network) -> Model:
    return Model.of(
        weights=tuple(layer.matrix().detach().double().numpy() for layer in network.layers),
        biases=tuple(layer.offset().detach().double().numpy() for layer in network.layers),
        activation=network.activation,
        sha256="",
    )
