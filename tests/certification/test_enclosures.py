"""The search for the largest ball on which enclosures prove a prediction."""

import pytest
import torch

from raycrt import Certifier
from raycrt.margins.tolerances import Tolerances
from tests.models import random_network


def _saturated(flat: float):
    """A network of three layers whose image 0 is in the flat part of tanh: all of its first layer
    is at `flat`, so that its gradient is 0 there, or nearly."""
    network = random_network(3, name="tanh", seed=3).double().requires_grad_(False)
    network.layers[0].bias.copy_(flat * network.layers[0].bias.sign())
    return network


@pytest.mark.parametrize("flat", [8.0, 12.0, 16.0, 18.0, 25.0, 60.0])
def test_a_search_from_a_flat_image_proves_what_a_decision_does(flat):
    certifier = Certifier(_saturated(flat), region="local", steps=0)
    x = torch.zeros(1, 5, dtype=torch.float64)
    found = certifier(x)
    assert float(found.enclosure_radius) > 0
    below = [float(certifier(x, at=found.radius * more).radius) for more in (1.02, 1.1, 1.5, 3.0)]
    assert max(below) <= 1.02 * float(found.radius)


@pytest.mark.parametrize("share", [0.0, 1e-2])
def test_a_search_without_a_least_gain_ends(share):
    tolerances = Tolerances(ball_gain=0.0, best_ball=share)
    network = random_network(3, gain=0.5)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    searched = Certifier(network, region="local", tolerances=tolerances)(x)
    usual = Certifier(network, region="local")(x)
    assert (searched.radius >= usual.radius * 0.98).all()
