"""The functions that `import raycrt` offers: radii of a model's images, and attacks on them."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

from torch import Tensor, nn

from raycrt.certification.certificate import Certificates
from raycrt.certification.certifier import Certifier
from raycrt.certification.options import radii_of_rows
from raycrt.data.values.images import batch_of_images, fits, one_image
from raycrt.errors import InvalidInput
from raycrt.evaluation import attacks
from raycrt.evaluation.attacks import Adversarial
from raycrt.foreign.modules.reader import as_network
from raycrt.networks.network import Network


def certify(
    model: nn.Module,
    images: Tensor,
    *,
    at: float | Tensor | Sequence[float] = inf,
    **options: Any,
) -> Certificates:
    """A radius around each of `images` (n, ...) in which the prediction cannot change.

    `model` is a `raycrt.Network` or a `torch.nn.Module` whose call is a chain of affine layers and
    one supported activation, as in `raycrt.as_network`; its mode is taken as `eval`.
    `images` may be a numpy array or a list of tensors too: `raycrt.data.values.images`. `options`
    go to `raycrt.Certifier`, which is what to keep when there is more than one batch: the curvature
    is proved there, once. Raises `InvalidInput` naming a layer that is not supported.

    `at`, one radius or one for each image (n,), is the radius to decide: work on an image stops
    where `found.certified_at(at)` is known, and larger radii are not looked for.
    """
    images = batch_of_images(images)
    # Before the curvature is proved, which takes longest.
    radii_of_rows(at, len(images))
    options = {"examples": images, **options}
    return Certifier(_network(model, images), **options)(images, at)


def attack(model: nn.Module, images: Tensor, **options: Any) -> Adversarial:
    """Distances from above: the nearest images found that are predicted as another class.

    `options` go to `raycrt.evaluation.attacks.attack`. Every certified radius lies below these
    distances.
    """
    images = batch_of_images(images)
    return attacks.attack(_network(model, images), images, **options)


def _network(model: nn.Module, images: Tensor) -> Network:
    """The network of a model that takes such images, before anything is proved of it."""
    shape = tuple(images.shape)
    try:
        network = as_network(model, shape[1:], images)
    except InvalidInput:
        if _takes(model, shape):
            raise InvalidInput(one_image(shape)) from None
        raise
    fits(images, features=network.features, device=network.device)
    return network


def _takes(model: nn.Module, shape: Sequence[int]) -> bool:
    """Whether `shape` is that of one input of `model`."""
    try:
        return as_network(model, shape).features == prod(shape)
    except InvalidInput:
        return False
