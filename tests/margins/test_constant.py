"""Classes that are predicted nowhere, and margins that are the same everywhere."""

from math import inf, nan

import pytest
import torch
from torch import nn

import raycrt
from raycrt import Certifier, Status
from raycrt.evaluation.attacks import attack
from raycrt.margins.constant import constant_margins
from raycrt.networks.network import Network
from tests.models import random_network

MASKS = (-inf, -3.4e38, -1e30, -1e9)
DEPLOYMENTS = ("exact", "float32")


def _images(n=20, features=5, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def _set(network, weight=None, bias=None):
    """Rows and biases of the last layer, by class."""
    last = network.layers[-1]
    with torch.no_grad():
        for kind, row in (weight or {}).items():
            last.weight[kind] = row
        for kind, number in (bias or {}).items():
            last.bias[kind] = number
    return network


def _without(network, kind):
    """The same network without a class."""
    kept = [i for i in range(network.classes) if i != kind]
    made = random_network(network.depth, classes=len(kept), name=network.activation)
    with torch.no_grad():
        for new, old in zip(made.layers[:-1], network.layers[:-1], strict=True):
            new.load_state_dict(old.state_dict())
        made.layers[-1].weight.copy_(network.layers[-1].weight[kept])
        made.layers[-1].bias.copy_(network.layers[-1].bias[kept])
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "deployment", "mask"),
    [(3, "exact", mask) for mask in MASKS]
    + [(2, "exact", -inf), (2, "float32", -inf), (3, "float32", -1e30)],
)
def test_a_masked_class_takes_nothing_from_the_others(depth, deployment, mask):
    network = _set(random_network(depth, seed=1), bias={3: mask})
    found = Certifier(network, deployment=deployment)(_images())
    rest = Certifier(_without(network, 3), deployment=deployment)(_images())
    assert (found.status == Status.CERTIFIED).all() and (found.prediction != 3).all()
    assert torch.equal(found.prediction, rest.prediction)
    assert found.radius == pytest.approx(rest.radius, rel=1e-4)
    assert (found.radius > 0).all() and torch.isfinite(found.curvature).all()
    distance = attack(network, _images()).distance
    assert (found.radius <= distance).all()
    if mask == -inf and depth == 2:
        assert distance == pytest.approx(attack(_without(network, 3), _images()).distance, rel=1e-6)


@pytest.mark.parametrize("mask", [-inf, -1e30])
def test_masked_classes_with_a_local_region(mask):
    network = _set(random_network(3, seed=2, gain=1.7), bias={3: mask})
    options = {"region": "local", "radii": (2.5,)}
    found = Certifier(network, **options)(_images(12))
    rest = Certifier(_without(network, 3), **options)(_images(12))
    assert torch.isfinite(found.region_radius).any()
    # The best ball is found to 1 %.
    assert found.radius == pytest.approx(rest.radius, rel=2e-2)


@pytest.mark.parametrize("kind", [0, 1])
def test_where_one_class_is_left_nothing_else_is_predicted(kind):
    masked = {i: -inf for i in range(4) if i != kind}
    network = _set(random_network(3), bias=masked)
    found = Certifier(network)(_images())
    assert (found.status == Status.CONSTANT).all() and (found.prediction == kind).all()
    assert torch.isinf(found.radius).all() and torch.isinf(found.radius_runner_up).all()
    assert (found.binding != kind).all() and (found.binding == found.runner_up).all()
    assert found.certified_at(1e300).all() and len(found.witnesses.row) == 0
    assert found.statuses() == {Status.CONSTANT: 20}
    local = Certifier(network, region="local", radii=(0.5,))(_images())
    assert torch.isinf(local.radius).all() and torch.isinf(local.region_radius).all()


@pytest.mark.parametrize("bias", [dict.fromkeys(range(4), -inf), {1: inf}, {1: nan}, {1: 1e101}])
def test_what_says_nothing_is_refused(bias):
    found = Certifier(_set(random_network(2).double(), bias=bias))(_images(3))
    assert (found.status == Status.NON_FINITE_NETWORK).all() and (found.radius == 0).all()


def test_an_infinite_bias_of_a_hidden_layer_is_refused():
    network = random_network(3)
    with torch.no_grad():
        network.layers[0].bias[2] = -inf
    assert (Certifier(network)(_images(3)).status == Status.NON_FINITE_NETWORK).all()


def test_a_sequential_with_a_mask_in_its_last_layer():
    layers = [nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    images = torch.rand(6, 1, 8, 8)
    plain = raycrt.certify(model, images).radius
    with torch.no_grad():
        model[-1].bias[int(raycrt.certify(model, images).runner_up.mode().values)] = -inf
    found = raycrt.certify(model, images)
    assert (found.status == Status.CERTIFIED).all() and (found.radius >= plain * (1 - 1e-9)).all()


def _equal_rows():
    network = random_network(3)
    return _set(network, weight={1: network.layers[-1].weight[0].detach().clone()})


def _nothing_read():
    network = random_network(3)
    with torch.no_grad():
        network.layers[1].weight[:, :6] = 0
        network.layers[0].weight[6:] = 0
    return network


def _dead_neuron():
    """Rows that differ at one neuron, which reads only a neuron that reads nothing."""
    network = _equal_rows()
    with torch.no_grad():
        network.layers[-1].weight[0, 4] += 1
        network.layers[1].weight[4] = 0
        network.layers[1].weight[4, 7] = 5
        network.layers[0].weight[7] = 0
    return network


@pytest.mark.parametrize(
    "make, constant", [(_equal_rows, {0, 1}), (_dead_neuron, {0, 1}), (_nothing_read, {0, 1, 2, 3})]
)
def test_which_margins_are_constant(make, constant):
    network = make().double()
    expected = torch.eye(4, dtype=torch.bool)
    for i in constant:
        for j in constant:
            expected[i, j] = True
    assert torch.equal(constant_margins(network), expected)
    logits = network(1e3 * _images(200).double()).detach()
    for y, t in expected.nonzero().tolist():
        margin = logits[:, y] - logits[:, t]
        assert float(margin.max() - margin.min()) <= 1e-9 * float(logits.abs().max())


@pytest.mark.parametrize("least", [1e-300, 5e-324])
def test_the_smallest_weight_makes_a_margin_depend_on_the_input(least):
    network = _nothing_read().double()
    with torch.no_grad():
        network.layers[1].weight[0, 0] = least
    assert torch.equal(constant_margins(network), torch.eye(4, dtype=torch.bool))
    network = _equal_rows().double()
    with torch.no_grad():
        network.layers[-1].weight[0, 4] = torch.nextafter(
            network.layers[-1].weight[0, 4], torch.tensor(inf, dtype=torch.float64)
        )
    assert torch.equal(constant_margins(network), torch.eye(4, dtype=torch.bool))
    assert torch.isfinite(Certifier(network)(_images()).radius).all()


def test_a_constant_margin_does_not_bind():
    network = _set(_equal_rows(), bias={0: 0.3, 1: 0.0})
    found = Certifier(network)(_images(60))
    rest = Certifier(_without(network, 1))(_images(60))
    rows = found.prediction == 0
    assert rows.any() and (found.prediction != 1).all()
    assert found.radius == pytest.approx(rest.radius, rel=1e-4)
    assert (found.status == Status.CERTIFIED).all() and (found.binding != 1)[rows].all()
    own = rows & (found.runner_up == 1)
    assert own.any() and torch.isinf(found.radius_runner_up[own]).all()


@pytest.mark.parametrize("make", [_nothing_read, _equal_rows])
def test_equal_classes_are_tied(make):
    network = make()
    if make is _equal_rows:
        network = _set(network, bias={0: 100.0, 1: 100.0})
    else:
        network = _set(
            network,
            {i: network.layers[-1].weight[0].detach().clone() for i in range(4)},
            dict.fromkeys(range(4), 0.5),
        )
    found = Certifier(network)(_images())
    assert (found.radius == 0).all() and (found.status != Status.CONSTANT).all()


@pytest.mark.parametrize("depth", [2, 3])
def test_a_network_of_constant_margins_is_right_everywhere_or_nowhere(depth):
    network = random_network(depth)
    row = network.layers[-1].weight[0].detach().clone()
    network = _set(network, weight=dict.fromkeys(range(4), row), bias=dict(enumerate([0, 1, 5, 2])))
    found = Certifier(network)(_images())
    assert (found.status == Status.CONSTANT).all() and torch.isinf(found.radius).all()
    far = network.double()(1e6 * _images(100).double())
    assert (far.argmax(1) == found.prediction[0]).all()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_float32_bounds_the_radius_of_a_constant_margin(depth, masked):
    """By its rounding or, of classes that are masked, by its largest number."""
    network = random_network(depth)
    row = network.layers[-1].weight[0].detach().clone()
    bias = dict.fromkeys((0, 1, 3), -inf) if masked else dict(enumerate([0, 1, 5, 2]))
    network = _set(network, weight=dict.fromkeys(range(4), row), bias=bias)
    found = Certifier(network, deployment="float32")(_images())
    assert (found.status == Status.CERTIFIED).all() and torch.isfinite(found.radius).all()
    assert (found.radius > (1e30 if masked else 1e3)).all()
    for scale in (1e-6, 1e-3, 1.0):
        step = torch.nn.functional.normalize(_images(20, seed=1).double(), dim=1)
        points = (_images() + scale * 0.999 * found.radius[:, None] * step).float()
        logits = network(points)
        assert not logits.isnan().any() and (logits.argmax(1) == 2).all()


@pytest.mark.slow
def test_masks_that_leave_two_classes():
    """The runner-up of every row is masked or the other one; all of them have a radius."""
    for mask in MASKS:
        network = _set(random_network(2), bias={1: mask, 3: mask})
        for deployment in DEPLOYMENTS:
            found = Certifier(network, deployment=deployment)(_images())
            rest = Certifier(_without(_without(network, 3), 1), deployment=deployment)(_images())
            assert found.radius == pytest.approx(rest.radius, rel=1e-4)
    lonely = _set(random_network(2), bias={1: -1e30, 3: -1e30, 0: -1e30})
    found = Certifier(lonely)(_images())
    assert (found.radius > 1e10).all() and (found.status == Status.CERTIFIED).all()


def test_masking_is_no_change_of_the_network():
    network = _set(random_network(2), bias={1: -inf})
    assert network.masked().tolist() == [False, True, False, False]
    assert torch.isneginf(network.layers[-1].bias[1])
    other = network.unmasked()
    assert isinstance(other, Network) and not other.masked().any()
    assert torch.isneginf(network.layers[-1].bias[1]) and other.unmasked() is other
