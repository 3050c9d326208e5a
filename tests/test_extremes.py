"""Numbers at the edges of their formats: underflow, overflow, NaN. Bounds hold or are infinite."""

import math

import pytest
import torch

from raycrt import Certifier, InvalidInput, Network, Status
from raycrt.activations import activation
from raycrt.affine import Dense
from raycrt.curvature import margin_curvature
from raycrt.spectral import eigenvalue_upper, norm_upper, weighted_gram_upper


def _network(name, *layers):
    """Weights as nested lists, with or without a bias, in float64."""
    maps = []
    for layer in layers:
        weight, bias = layer if isinstance(layer, tuple) else (layer, None)
        weight = torch.tensor(weight, dtype=torch.float64)
        made = Dense(weight.shape[1], weight.shape[0]).double()
        with torch.no_grad():
            made.weight.copy_(weight)
            made.bias.copy_(torch.tensor(bias or [0.0] * len(weight), dtype=torch.float64))
        maps.append(made)
    return Network(maps, activation(name))


def _scaled(value):
    return [[value, 0.0], [0.0, value]]


@pytest.mark.parametrize(
    "network",
    [
        _network("softplus", _scaled(1e20), _scaled(1e20)),
        _network("tanh", _scaled(1e-23), _scaled(1e-23), _scaled(1e30)),
    ],
    ids=["overflow", "underflow"],
)
def test_a_deployment_that_leaves_float32_is_not_certified(network):
    image = torch.tensor([[1.0, 2.0]])
    found = Certifier(network, deployment="float32")(image)
    deployed = network.copied(torch.float32)(image).argmax(1)
    assert float(found.radius) == 0 or bool(found.prediction == deployed)
    assert float(found.radius) == 0


def test_gradients_that_underflow_in_float32_on_the_way():
    bias = 1e-25 * math.tanh(1e-25 * math.tanh(0.3)) * (1 - 1e-4)
    network = _network(
        "tanh",
        (_scaled(1e25), [0.3, 0.0]),
        _scaled(1e-25),
        ([[1e-25, 0.0], [-1e-25, 0.0]], [-bias, bias]),
    )
    found = Certifier(network)(torch.zeros(1, 2))
    assert float(found.radius) <= 3.2e-30


def test_squares_of_weights_that_underflow():
    network = _network(
        "tanh",
        [*_scaled(1e-170), [0.0, 0.0]],
        ([[1e170, 0.0, 0.0], [0.0, 1e170, 0.0], [0.0, 0.0, 0.0]], [0.6, 0.0, 0.0]),
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
    )
    assert margin_curvature(network)[0, 1] == math.inf
    assert Certifier(network)(torch.zeros(2, 2)).status.tolist() == [Status.NON_FINITE_NETWORK] * 2


def test_products_of_zero_and_infinity_are_no_bound():
    matrix = torch.tensor([[1e160, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert weighted_gram_upper(matrix, torch.tensor([0.0, 1.0])) == math.inf


def test_an_eigenvalue_that_overflows_is_infinite():
    assert norm_upper(torch.full((100, 101), 3e152, dtype=torch.float64)) >= 3e154
    assert eigenvalue_upper(torch.full((3, 3), 1e308, dtype=torch.float64)) >= 1e308


def test_equal_logits_of_a_tiny_image_are_not_told_apart():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 3, dtype=torch.float64, generator=generator)
    weights = torch.randn(30, dtype=torch.float64, generator=generator)
    order = torch.randperm(30, generator=generator)
    first = torch.cat([rows, rows[order]])
    last = torch.zeros(2, 60, dtype=torch.float64)
    last[0, :30], last[1, 30:] = weights, weights[order]
    network = _network("tanh", first.tolist(), last.tolist())
    for scale in (1.0, 1e-100, 1e-170, 1e-200):
        images = scale * torch.randn(20, 3, dtype=torch.float64, generator=generator)
        assert (Certifier(network)(images).radius == 0).all()


def test_images_whose_squares_overflow_are_refused():
    network = _network("tanh", _scaled(1.0), _scaled(1.0))
    found = Certifier(network)(torch.tensor([[1.0, 0.0], [1e160, 0.0]], dtype=torch.float64))
    assert found.status.tolist() == [Status.CERTIFIED, Status.NON_FINITE_INPUT]


def test_autocast_does_not_reach_a_proof():
    network = _network("tanh", _scaled(1.0), _scaled(1.0)).float()
    images = torch.tensor([[1.0, 0.2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Certifier(network)(images)
    assert torch.equal(inside.radius, Certifier(network)(images).radius)


def test_one_class_has_no_margin():
    with pytest.raises(InvalidInput, match="classes >= 2"):
        _network("tanh", _scaled(1.0), [[1.0, 1.0]])
