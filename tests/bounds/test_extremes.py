"""Numbers at the edges of their formats: underflow, overflow, NaN. Bounds hold or are infinite."""

import math

import pytest
import torch

from raycrt import Certifier, InvalidInput, Network, Status
from raycrt.activations import activation
from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.spectral import eigenvalue_upper, norm_upper, weighted_gram_upper
from raycrt.networks.floating_point import float32_is_plain
from raycrt.networks.layers.affine import Chain, Dense
from raycrt.networks.layers.diagonal import Normalization


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


def test_a_weight_beyond_float32_is_not_certified_however_small_its_input():
    network = _network("tanh", (_scaled(1e39), [0.0, -20.0]), (_scaled(1.0), [0.0, 0.3]))
    image = torch.tensor([[1.5e-38, 1.2e-38]])
    assert int(network.copied(torch.float32)(image).argmax()) == 1
    found = Certifier(network, deployment="float32", steps=0)(image)
    assert int(found.prediction) == 0 and float(found.radius) == 0


@pytest.mark.parametrize("weight, variance", [(1e-22, 3e-45), (1e-39, 1e-78), (1e39, 1e78)])
def test_a_normalization_beyond_float32_is_not_certified(weight, variance):
    """Rounded to float32 its scale is off by several per cent, or no number."""
    first = Normalization(1, 2, eps=0.0).double().requires_grad_(False)
    first.weight.fill_(weight)
    first.variance.fill_(variance)
    scale = float(first.scale()[0])
    tail = _network("tanh", (_scaled(1e-3), [-1e-3 * scale * 1.005, 0.0]), _scaled(1.0))
    network = Network([Chain([first, tail.layers[0]]), tail.layers[1]], tail.activation)
    image = torch.tensor([[0.99, -0.01]])
    found = Certifier(network, deployment="float32", steps=0)(image)
    assert int(found.prediction) == 1 and float(found.radius) == 0


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


def test_squares_that_overflow_leave_a_bound():
    matrix = torch.tensor([[1e160, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert weighted_gram_upper(matrix, torch.tensor([0.0, 1.0])) >= 1
    assert weighted_gram_upper(matrix, torch.tensor([1.0, 1.0])) == math.inf


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


def _float32(name, *layers):
    """Float32 maps of square matrices; a list of them is a chain."""
    maps = []
    for layer in layers:
        links = []
        for weight in layer if isinstance(layer, list) else [layer]:
            made = Dense(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                made.weight.copy_(weight)
                made.bias.zero_()
            links.append(made)
        maps.append(Chain(links) if isinstance(layer, list) else links[0])
    return Network(maps, activation(name))


@pytest.mark.parametrize("size", [4096, 16384])
def test_a_last_layer_of_two_matrices_is_rounded_once(size):
    """Its product taken in float32 is off by more than a rounding."""
    narrow = torch.full((2, size), 0.7) * torch.tensor([[1.0], [-1.0]])
    network = _float32("tanh", torch.eye(2) * 1e-4, [torch.full((size, 2), 0.3), narrow])
    x = torch.tensor([[0.5, 0.6]])
    # The classes meet where x_1 + x_2 = 0.
    assert 0 < float(Certifier(network)(x).radius) <= float(x.double().sum()) / math.sqrt(2)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["exact", "float32"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-25, 1e25, 1e-10])
def test_what_is_lost_on_the_way_through_a_chain_is_counted(scale, place, deployment):
    eye = torch.eye(2)
    layers = [eye * 1e-3, eye, eye]
    layers[place] = [layers[place], eye * scale, eye * scale, eye / scale, eye / scale]
    network = _float32("tanh", *layers)
    x = torch.tensor([[0.5, 0.2]])
    found = Certifier(network, deployment=deployment)(x)
    assert float(found.radius) <= 0.3 / math.sqrt(2)
    if deployment == "float32" and float(found.radius) > 0:
        assert int(network(x).argmax()) == int(found.prediction)


def test_float64_chains_that_underflow_certify_nothing_wrong():
    small, large = _scaled(1e-90), _scaled(1e90)
    parts = [_network("tanh", small, small).layers[0] for _ in range(4)]
    parts += [_network("tanh", large, large).layers[0] for _ in range(3)]
    last = _network("tanh", small, ([[1e90, 0.0], [0.0, 1e90]], [0.0, 0.1])).layers[1]
    network = Network([Chain(parts), last], activation("tanh"))
    found = Certifier(network, steps=0)(torch.tensor([[0.5, 0.2]]))
    assert float(found.radius) == 0


@pytest.mark.parametrize("exponent", [-158, -160, -161, -161.25, -162])
@pytest.mark.parametrize("depth", [2, 5])
def test_gradients_whose_squares_underflow_prove_no_more_than_the_truth(exponent, depth):
    network = _network("tanh", *[_scaled(10.0 ** (exponent / depth))] * depth)
    found = Certifier(network)(torch.tensor([[0.5, 0.2]]))
    assert float(found.radius) <= 0.3 / math.sqrt(2)


def test_a_first_map_of_several_tensors_that_overflows_is_not_finite():
    parts = [_network("tanh", _scaled(1e90), _scaled(1.0)).layers[0] for _ in range(4)]
    network = Network(
        [Chain(parts), _network("tanh", _scaled(1.0), _scaled(1.0)).layers[1]], activation("tanh")
    )
    found = Certifier(network)(torch.tensor([[0.5, 0.2]]))
    assert int(found.status) == Status.NON_FINITE_NETWORK


def test_products_of_reduced_precision_are_noticed_however_they_were_asked_for():
    assert float32_is_plain()
    plain = Certifier(_network("tanh", _scaled(1.0), _scaled(1.0)))
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "bf16"
        assert not float32_is_plain()
        certifier = Certifier(_network("tanh", _scaled(1.0), _scaled(1.0)))
        assert (
            certifier.batch.prepared.fast.dtype
            == certifier.batch.prepared.backward.dtype
            == torch.float64
        )
        with pytest.raises(InvalidInput, match="as exact as when the certifier was made"):
            plain(torch.randn(2, 2))
    finally:
        torch.backends.fp32_precision = before
    assert float32_is_plain()
