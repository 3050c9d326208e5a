"""Classifiers with a proved l2 radius for every image.

>>> import raycrt
>>> found = raycrt.certify(model, images)      # proves the curvature of every margin, once
>>> found.radius, found.prediction, found.binding, found.status
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from raycrt.attacks import Adversarial
from raycrt.attacks import attack as _attack
from raycrt.certificate import Certificates, Status
from raycrt.certifier import Certifier
from raycrt.errors import InvalidInput
from raycrt.network import Network
from raycrt.sequential import as_network

__all__ = [
    "Adversarial",
    "Certificates",
    "Certifier",
    "InvalidInput",
    "Network",
    "Status",
    "attack",
    "certify",
]


def certify(model: nn.Module, images: Tensor, **options: Any) -> Certificates:
    """A radius around each of `images` (n, ...) in which the prediction cannot change.

    `model` is a `raycrt.Network` or a `torch.nn.Sequential` of linear layers and one supported
    activation; its weights are taken as stored and its mode as `eval`. `options` go to
    `raycrt.Certifier`, which is what to keep when there is more than one batch: the curvature is
    proved there, once. Raises `InvalidInput` naming a layer that is not supported.
    """
    return Certifier(_network(model, images), **options)(images)


def attack(model: nn.Module, images: Tensor, **options: Any) -> Adversarial:
    """Distances from above: the nearest images found that are predicted as another class.

    `options` go to `raycrt.attacks.attack`. Every certified radius lies below these distances.
    """
    return _attack(_network(model, images), images, **options)


def _network(model: nn.Module, images: Tensor) -> Network:
    if isinstance(model, Network):
        return model
    shape: Sequence[int] = images.shape[1:]
    return as_network(model, shape)
