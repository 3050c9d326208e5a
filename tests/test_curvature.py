"""The curvature of every margin lies above what exact Hessians show."""

import pytest
import torch

from raycrt.activations import ACTIVATIONS
from raycrt.curvature import margin_curvature
from tests.models import LINEAR, random_network


def _most_negative(network, y, t, points):
    def margin(x):
        logits = network(x[None])[0]
        return logits[y] - logits[t]

    hessians = torch.func.vmap(torch.func.hessian(margin))(points)
    return -float(torch.linalg.eigvalsh(hessians)[:, 0].min())


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_hessian_bends_more(depth, name):
    network = random_network(depth, name=name, seed=depth).double()
    m = margin_curvature(network)
    points = 2 * torch.randn(300, 5, dtype=torch.float64)
    for y, t in [(0, 1), (1, 0), (2, 3)]:
        assert _most_negative(network, y, t, points) <= float(m[y, t])
    assert (m.diagonal() == 0).all() and torch.isfinite(m).all()


def test_two_layers_of_one_neuron_are_exact():
    """z = w tanh(v.x): the Hessian's extremes are |w| |v|^2 times the extremes of tanh''."""
    network = random_network(2, features=3, width=1, classes=2, name="tanh").double()
    v, w = network.layers[0].matrix()[0], network.layers[1].matrix()[:, 0]
    expected = float((w[0] - w[1]).abs() * v.square().sum()) * 4 / (3 * 3**0.5)
    assert float(margin_curvature(network)[0, 1]) == pytest.approx(expected, rel=1e-6)


def test_a_linear_network_has_no_curvature():
    assert (margin_curvature(random_network(3, name=LINEAR)) == 0).all()


def test_signs_are_kept():
    """One class that only grows convexly: its margin against a constant class has m = 0."""
    network = random_network(2, width=6, classes=2)
    with torch.no_grad():
        network.layers[1].weight.abs_()
        network.layers[1].weight[1] = 0
    m = margin_curvature(network)
    assert float(m[0, 1]) == 0 and float(m[1, 0]) > 0
