"""A network as the checker sees it."""

from __future__ import annotations

from raycrt.networks.network import Network
from raycrt.verify.hidden import Hidden
from raycrt.verify.model import Model


def seen(network: Network) -> Model:
    return Model(
        weights=tuple(layer.matrix().detach().double().numpy() for layer in network.layers),
        biases=tuple(layer.offset().detach().double().numpy() for layer in network.layers),
        hidden=tuple(
            Hidden(activation=each.activation, active=each.active, width=each.width)
            for each in network.nonlinearities
        ),
        sha256="",
    )
