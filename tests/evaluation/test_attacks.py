"""Distances from above: misclassifications, and no farther than a library's own attacks find."""

import foolbox
import pytest
import torch

import raycrt
from tests.models import random_network


@pytest.fixture(params=[(2, "softplus"), (3, "tanh"), (4, "gelu")], ids=str)
def case(request):
    depth, name = request.param
    network = random_network(depth, name=name, gain=1.5, seed=depth)
    images = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    return network, images


def test_the_library_s_attacks_lie_outside_every_certificate(case):
    network, images = case
    found = raycrt.certify(network, images)
    bounded = foolbox.PyTorchModel(network.eval(), bounds=(-10, 10))
    for attack in (foolbox.attacks.L2DeepFoolAttack(steps=50), foolbox.attacks.DDNAttack(steps=60)):
        _, adversarial, success = attack(bounded, images, found.prediction, epsilons=None)
        distance = (adversarial - images).double().norm(dim=1)
        assert bool(success.any())
        # A float32 point on the boundary may be called either way by its rounding.
        assert (found.radius[success] <= distance[success] * (1 + 1e-5)).all()


def test_ours_is_no_worse_than_the_library_s(case):
    network, images = case
    ours = raycrt.attack(network, images)
    label = network(images).argmax(1)
    attacked = network.in_float64()(images.double() + ours.perturbation).argmax(1)
    reached = torch.isfinite(ours.distance)
    assert (attacked != label)[reached].all()
    bounded = foolbox.PyTorchModel(network.eval(), bounds=(-10, 10))
    _, adversarial, success = foolbox.attacks.L2DeepFoolAttack(steps=50)(
        bounded, images, label, epsilons=None
    )
    theirs = (adversarial - images).double().norm(dim=1)
    assert float((ours.distance / theirs)[success & reached].median()) <= 1.001
