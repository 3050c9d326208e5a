"""Quadratic enclosures: every layer and margin on a ball lies within what is stated of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raycrt import as_network
from raycrt.activations import ACTIVATIONS
from raycrt.bounds.enclosure import NetworkEnclosure, leading_directions
from raycrt.bounds.enclosure.forms import Forms
from raycrt.bounds.enclosure.quadratics import fit
from raycrt.networks.network import Network
from raycrt.networks.nonlinearity import Nonlinearity
from tests.models import random_network

NAMES = sorted(ACTIVATIONS)


def within(count: int, features: int, radius: float) -> Tensor:
    """Steps (count, features) of norm at most `radius`, half of them on the sphere."""
    steps = torch.randn(count, features, dtype=torch.float64)
    lengths = torch.rand(count, 1, dtype=torch.float64)
    lengths[::2] = 1
    return steps / steps.norm(dim=1, keepdim=True) * lengths * radius


def floors(enclosure: NetworkEnclosure, x: Tensor, radius: float) -> tuple[int, Tensor, Tensor]:
    """The predicted class at x, the others, and the lower bounds on their margins."""
    *hidden, _ = enclosure.jacobians(x)
    label = int(enclosure.network(x[None])[0].argmax())
    targets = torch.tensor([t for t in range(enclosure.network.classes) if t != label])
    directions = leading_directions(torch.cat(hidden))
    return label, targets, enclosure.floors(x, radius, label, targets, directions)


def descended(network: Network, x: Tensor, radius: float, label: int, target: int) -> float:
    """The least margin that projected descent from several starts finds on the ball."""
    u = within(16, len(x), radius).requires_grad_()
    least = math.inf
    for _ in range(40):
        z = network((x + u).unsqueeze(1))
        margin = z[:, label] - z[:, target]
        least = min(least, float(margin.detach().min()))
        (gradient,) = torch.autograd.grad(margin.sum(), u)
        with torch.no_grad():
            u -= radius / 4 * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-300)
            u *= (radius / u.norm(dim=1, keepdim=True)).clamp(max=1)
    return least


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0.0, 1e-9, 1e-3, 0.3, 4.0, 60.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_a_quadratic_and_its_rest_enclose_the_activation(
    name: str, width: float, scale: float
) -> None:
    torch.manual_seed(0)
    n = 200
    middle = torch.randn(n, dtype=torch.float64) * scale
    half = torch.rand(n, dtype=torch.float64) * width
    centre = middle + (torch.rand(n, dtype=torch.float64) - 0.5) * width
    each = Nonlinearity(activation=ACTIVATIONS[name], active=n, width=n)
    found = fit(each, centre, middle - half, middle + half)
    z = middle + half * torch.linspace(-1, 1, 999, dtype=torch.float64)[:, None]
    z = torch.minimum(torch.maximum(z, middle - half), middle + half)
    d = z - centre
    left = each.value(z) - (found.value + found.slope * d + found.bend * d.square())
    assert (left.abs() <= found.rest).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_is_of_third_order(name: str) -> None:
    n = 60
    centre = torch.linspace(-3, 3, n, dtype=torch.float64)
    each = Nonlinearity(activation=ACTIVATIONS[name], active=n, width=n)
    rests = [fit(each, centre, centre - h, centre + h).rest for h in (0.02, 0.01)]
    # Where the third derivative vanishes, rounding and the fourth order are left.
    assert float(rests[0].max() / rests[1].max()) == pytest.approx(8, rel=0.1)


def test_features_that_are_passed_on_have_no_rest() -> None:
    each = Nonlinearity(activation=ACTIVATIONS["tanh"], active=2, width=4)
    centre = torch.tensor([0.1, -2.0, 3.0, -5.0], dtype=torch.float64)
    found = fit(each, centre, centre - 1, centre + 1)
    assert (found.rest[2:] < 1e-13).all() and (found.bend[2:].abs() < 1e-13).all()
    assert (found.rest[:2] > 1e-4).all()


@pytest.mark.parametrize("features", [3, 12, 200])
@pytest.mark.parametrize("parts", [1, 3])
def test_norms_of_forms_are_not_exceeded(features: int, parts: int) -> None:
    torch.manual_seed(features)
    spectrum = torch.logspace(0, -4, features, dtype=torch.float64)
    rows = torch.randn(60, features, dtype=torch.float64) * spectrum
    forms = Forms.along(leading_directions(rows))
    for part in rows.chunk(parts):
        forms = forms.joined_by(part, part.norm(dim=1) * (1 + 1e-12))
    weights = torch.randn(40, 60, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(torch.einsum("kl,la,lb->kab", weights, rows, rows)).abs().amax(1)
    found = forms.norms(weights)
    assert (found >= exact).all()
    assert (found <= 1.5 * exact).all()
    last = rows.chunk(parts)[-1]
    positive = weights.abs()[:, : len(last)]
    exact = torch.linalg.eigvalsh(torch.einsum("kl,la,lb->kab", positive, last, last))[:, -1]
    assert (forms.norms_of_positive(positive, parts - 1) >= exact).all()


def test_directions_that_are_not_quite_orthonormal_are_accounted_for() -> None:
    torch.manual_seed(0)
    rows = torch.randn(30, 8, dtype=torch.float64)
    directions = leading_directions(rows) * (1 - 1e-6)
    forms = Forms.along(directions).joined_by(rows, rows.norm(dim=1) * (1 + 1e-12))
    weights = torch.rand(5, 30, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(torch.einsum("kl,la,lb->kab", weights, rows, rows))[:, -1]
    assert (forms.norms(weights) >= exact).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("radius", [1e-8, 0.05, 0.6])
def test_no_input_in_the_ball_falls_below_the_floors(name: str, depth: int, radius: float) -> None:
    torch.manual_seed(depth)
    network = random_network(depth=depth, width=14, features=9, name=name, gain=1.8)
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(9, dtype=torch.float64)
    label, targets, found = floors(enclosure, x, radius)
    assert torch.isfinite(found).all()
    for target, floor in zip(targets.tolist(), found.tolist(), strict=True):
        least = descended(enclosure.network, x, radius, label, target)
        assert floor <= least
        if radius == 1e-8:
            assert floor == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("radius", [0.02, 0.3])
def test_every_layer_lies_in_its_enclosure(radius: float) -> None:
    torch.manual_seed(1)
    network = random_network(depth=4, width=20, features=12, name="silu", gain=1.5)
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(12, dtype=torch.float64)
    directions = leading_directions(torch.cat(enclosure.jacobians(x)[:-1]))
    layers, _ = enclosure.layers(x, radius, directions)
    u = within(4000, 12, radius)
    z = enclosure.network.layers[0](x + u)
    for k, layer in enumerate(layers):
        error = z - layer.centre - u @ layer.jacobian.T
        assert (error.abs() <= layer.error).all()
        assert ((z - layer.centre).abs() <= layer.spread).all()
        features = enclosure.network.nonlinearities[k].value(z)
        assert (features.abs() <= layer.size).all()
        z = enclosure.network.layers[k + 1](features)
    # The bounds are of the right size: some error takes up a good part of its bound.
    assert (error.abs().amax(0) > 0.02 * layers[-1].error).any()


@pytest.mark.parametrize(
    "modules",
    [
        (
            nn.Unflatten(1, (1, 6, 6)),
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(3, 4, 3, stride=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(16, 4),
        ),
        (
            nn.Linear(36, 12),
            nn.BatchNorm1d(12),
            nn.SiLU(),
            nn.Linear(12, 9),
            nn.Linear(9, 8),
            nn.Softplus(),
            nn.Linear(8, 4),
        ),
    ],
    ids=["convolutions", "chains"],
)
def test_floors_hold_for_maps_of_several_tensors(modules: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(*modules).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    network = as_network(model, (36,))
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(36, dtype=torch.float64)
    for radius in (0.05, 0.5):
        label, targets, found = floors(enclosure, x, radius)
        for target, floor in zip(targets.tolist(), found.tolist(), strict=True):
            assert floor <= descended(enclosure.network, x, radius, label, target)
            assert floor > -math.inf


@pytest.mark.parametrize("gain", [1e-12, 1e-4, 1e3, 1e12])
def test_floors_hold_at_any_scale(gain: float) -> None:
    torch.manual_seed(3)
    network = random_network(depth=3, width=10, features=6, name="tanh", gain=1.0)
    with torch.no_grad():
        network.maps[-1].weight *= gain
        network.maps[-1].bias *= gain
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(6, dtype=torch.float64)
    for radius in (1e-12, 1e-3, 0.4):
        label, targets, found = floors(enclosure, x, radius)
        for target, floor in zip(targets.tolist(), found.tolist(), strict=True):
            assert floor <= descended(enclosure.network, x, radius, label, target)


@pytest.mark.parametrize("scales", [(1e-99, 1e99, 1e99), (1e-80, 1e90, 1.0), (1e-85, 1.0, 1e85)])
def test_underflow_proves_nothing(scales: tuple[float, ...]) -> None:
    network = random_network(depth=3, width=6, features=4, name="softplus", gain=1.0).double()
    with torch.no_grad():
        for each, scale in zip(network.maps, scales, strict=True):
            each.weight *= scale
            each.bias *= 0
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(4, dtype=torch.float64)
    for radius in (0.1, 10.0):
        label, targets, found = floors(enclosure, x, radius)
        for target, floor in zip(targets.tolist(), found.tolist(), strict=True):
            assert floor <= descended(enclosure.network, x, radius, label, target)


def test_neurons_that_do_not_depend_on_the_input_are_allowed() -> None:
    network = random_network(depth=4, width=10, features=6, name="tanh", gain=1.0)
    with torch.no_grad():
        for each in network.maps[:-1]:
            each.weight[:3] = 0
        network.maps[1].bias[4] = 800.0
    enclosure = NetworkEnclosure.of(network)
    x = torch.rand(6, dtype=torch.float64)
    label, targets, found = floors(enclosure, x, 0.1)
    assert torch.isfinite(found).all()
    for target, floor in zip(targets.tolist(), found.tolist(), strict=True):
        least = descended(enclosure.network, x, 0.1, label, target)
        assert least - 0.5 < floor <= least


def test_nothing_is_proved_on_a_ball_without_bounds() -> None:
    network = random_network(depth=3, width=10, features=6, name="softplus", gain=1.0)
    enclosure = NetworkEnclosure.of(network)
    _, _, found = floors(enclosure, torch.full((6,), 1e200, dtype=torch.float64), 1e200)
    assert torch.isneginf(found).all()
