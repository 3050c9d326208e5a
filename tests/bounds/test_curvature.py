"""The curvature of every margin lies above what exact Hessians show."""

import math

import pytest
import torch

from raycrt.bounds.curvature import margin_curvature
from tests.models import random_network


def test_two_layers_of_one_neuron_are_exact():
    """z = w tanh(v.x): the Hessian's extremes are |w| |v|^2 times the extremes of tanh''."""
    network = (
        random_network(2, features=3, width=1, classes=2, name="tanh")
        .double()
        .requires_grad_(False)
    )
    v, w = network.layers[0].matrix()[0], network.layers[1].matrix()[:, 0]
    expected = float((w[0] - w[1]).abs() * v.square().sum()) * 4 / (3 * 3**0.5)
    assert float(margin_curvature(network)[0, 1]) == pytest.approx(expected, rel=1e-6)


def test_signs_are_kept():
    """One class that only grows convexly: its margin against a constant class has m = 0."""
    network = random_network(2, width=6, classes=2)
    with torch.no_grad():
        network.layers[1].weight.abs_()
        network.layers[1].weight[1] = 0
    m = margin_curvature(network)
    assert float(m[0, 1]) == 0 and float(m[1, 0]) > 0


def _compositional(network):
    """sum_k sup|s''| |F_k| |diag(|w_i|) W_k| Lip(a_{k-1})^2 of the margin (0, 1)."""
    matrices = [layer.matrix().detach() for layer in network.layers]
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in matrices]
    slope, above, total = network.activation.slope_bound, matrices[-1][0] - matrices[-1][1], 0.0
    length = float(above.norm())
    for k in range(network.depth - 2, -1, -1):
        rows = float(torch.linalg.matrix_norm(matrices[k].norm(dim=1)[:, None] * matrices[k], 2))
        before = math.prod(slope * norm for norm in norms[:k])
        total += network.activation.curvature_bound * length * rows * before**2
        length *= slope * norms[k]
    return total


@pytest.mark.parametrize("name", ["tanh", "softplus", "arctan"])
def test_a_rank_one_layer_below_an_orthogonal_one_bends_no_more_than_its_composition(name):
    """Elementwise bounds lose the length of what an orthogonal layer mixes, and take the norm of
    the layer below, four times its rows' lengths, twice."""
    signs = torch.ones(1, 1)
    for _ in range(4):
        signs = torch.kron(signs, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    network = random_network(4, width=16, classes=2, name=name).double()
    with torch.no_grad():
        network.layers[0].weight.fill_(0.5)
        network.layers[1].weight.fill_(1 / 4)
        network.layers[2].weight.copy_(1e-3 * signs / 4)
        network.layers[3].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
    assert float(margin_curvature(network)[0, 1]) <= _compositional(network) * (1 + 1e-6)
