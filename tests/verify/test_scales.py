"""What the certifier proves of networks and images of any size, the checker proves too."""

import numpy as np
import pytest
import torch

from raycrt import Certifier
from raycrt.certification.table import storage
from raycrt.verify.checker import Checker
from raycrt.verify.curvature import curvature_upper
from raycrt.verify.inputs import InArrays
from raycrt.verify.radius import Errors, floor
from tests.models import random_network
from tests.verify.seen import seen


def _findings(file, network, images, **options):
    """The certificates of `images`, and what the checker says of them."""
    certifier = Certifier(network, **options)
    found = certifier(images)
    labels = np.zeros(len(images), int)
    storage.write_rows(file, storage.to_table(found, 0, labels, images.numpy()))
    model, stated = seen(network), certifier.curvature.numpy()
    checker = Checker(
        model,
        curvature=np.fmax(curvature_upper(model, stated), stated),
        stated=stated,
        inputs=InArrays.of("rows", images.numpy(), labels),
        deployment=options.get("deployment", "exact"),
        region=options.get("region", "global"),
    )
    return found, checker.check_file(file).findings


def _network(depth, name, scales, dtype=torch.float64, **options):
    """A random network, each layer's weights times its scale, without biases."""
    network = random_network(depth, name=name, **options).to(dtype).requires_grad_(False)
    for layer, scale in zip(network.layers, scales, strict=True):
        layer.weight.mul_(scale)
        layer.bias.zero_()
    return network


def _images(scale):
    return scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scales", [(3e11, 3e11), (1e13, 1.0)])
def test_local_curvature_where_neurons_are_saturated(tmp_path, scales):
    network = _network(len(scales), "silu", scales)
    options = {"region": "local", "radii": (0.003, 0.05, 0.2)}
    found, findings = _findings(tmp_path / "rows", network, _images(1.0), **options)
    assert torch.isfinite(found.region_radius).any() and not findings


@pytest.mark.parametrize(
    ("name", "scales"),
    [("tanh", (1e-11, 1, 1, 1)), ("gelu", (1e-8,) * 4), ("sigmoid", (1.0, 1.0, 1e-27))],
)
def test_float32_radii_far_beyond_the_images(tmp_path, name, scales):
    """What float32 loses at the image is much, what it loses on the way out little."""
    network = _network(len(scales), name, scales)
    network.layers[-1].bias.copy_(torch.arange(4.0))
    found, findings = _findings(tmp_path / "rows", network, _images(1.0), deployment="float32")
    assert (found.radius > 1e9).any() and not findings


def test_only_points_beside_an_image_are_rounded():
    """At a length of 1e9 a point is off by 1e-7, which m = 1e20 makes 1e6 of."""
    errors = Errors.of(seen(_network(2, "tanh", (1e-12, 1e-12))))
    one = np.ones(1)
    at = {"length": 1e9 * one, "value": one, "gradient": np.zeros((1, 5)), "m": 1e20 * one}
    assert floor(errors, **at).radius() == pytest.approx(2 / np.sqrt(2e20), rel=1e-3)
    assert floor(errors, **at, u=np.full((1, 5), 1e-30)).radius() == 0
