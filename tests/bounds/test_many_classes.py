"""With many classes the curvature is proved for all pairs at once, and again where it binds."""

import numpy as np
import pytest
import torch

import raycrt
from raycrt.bounds import curvature
from raycrt.bounds.curvature import FEW_CLASSES, margin_curvature
from raycrt.bounds.global_curvature import layer_bounds, pair_upper
from raycrt.verify import curvature as checked
from raycrt.verify.curvature import TOLERANCE, curvature_upper
from tests.models import random_network
from tests.verify.seen import seen

CLASSES = FEW_CLASSES + 1


@pytest.fixture(scope="module", params=[(2, "softplus"), (3, "silu")])
def network(request):
    depth, name = request.param
    return random_network(depth, name=name, classes=CLASSES, seed=depth).in_float64()


@pytest.fixture(scope="module")
def every_pair(network):
    """Each pair proved by itself."""
    bounds, m = layer_bounds(network), torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    for y in range(CLASSES):
        for t in range(CLASSES):
            if y != t:
                m[y, t] = pair_upper(network, bounds, y, t)
    return m


def _images(rows=60):
    return 2 * torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))


def test_no_hessian_bends_more_than_the_bounds_of_both_classes(network):
    m = margin_curvature(network)
    points = _images(300).double()

    def logits(x):
        return network(x[None])[0]

    hessians = torch.func.vmap(torch.func.hessian(logits))(points)
    for y, t in [(0, 1), (1, 0), (7, CLASSES - 1)]:
        smallest = torch.linalg.eigvalsh(hessians[:, y] - hessians[:, t])[:, 0].min()
        assert -float(smallest) <= float(m[y, t])
    assert (m.diagonal() == 0).all() and torch.isfinite(m).all()


def test_what_all_classes_share_adds_nothing(network):
    """A function that is added to all logits leaves every margin, and its bound, as it is."""
    m = margin_curvature(network)
    shifted = network.in_float64()
    with torch.no_grad():
        shifted.layers[-1].weight += 100 * torch.randn(network.layers[-1].in_features)
    assert torch.allclose(margin_curvature(shifted), m, rtol=1e-6)


def test_pairs_that_may_bind_are_proved_by_themselves(network, every_pair):
    images = _images()
    loose, m = margin_curvature(network), margin_curvature(network, images)
    own = m < loose
    assert torch.allclose(m[own], every_pair[own], rtol=1e-12)
    assert torch.equal(m[~own], loose[~own])
    best = raycrt.Certifier(network, curvature=every_pair)(images)
    assert own[best.prediction, best.binding].all()


def test_radii_are_those_of_every_pair_proved_by_itself(network, every_pair):
    images = _images()
    best = raycrt.Certifier(network, curvature=every_pair)(images)
    found = raycrt.certify(network, images)
    assert torch.equal(found.prediction, best.prediction)
    assert (found.radius <= best.radius * (1 + 1e-4)).all()
    assert float(found.radius.sum() / best.radius.sum()) > 0.99


@pytest.mark.parametrize("classes", [50, 100])
def test_proofs_grow_with_the_classes_and_not_with_their_pairs(classes, monkeypatch):
    asked = []
    monkeypatch.setattr(curvature, "pair_upper", lambda *given: asked.append(given) or 1.0)
    network = random_network(2, classes=classes)
    margin_curvature(network, _images(30))
    assert 1 <= len(asked) <= 30 * 8
    asked.clear()
    margin_curvature(network)
    assert asked == []


def test_progress_is_told_of_every_proof():
    told = []

    def watch(name, items):
        told.append((name, len(items)))
        return items

    margin_curvature(random_network(2, classes=4), watch=watch)
    assert told == [("curvature of pairs of classes", 12)]
    told.clear()
    margin_curvature(random_network(2, classes=CLASSES), _images(), watch)
    assert told[0] == ("curvature of classes", CLASSES)
    assert {name for name, _ in told[1:]} == {"curvature of pairs that may bind"}


def test_images_that_are_not_finite_bind_nothing():
    network = random_network(2, classes=CLASSES)
    images = torch.full((3, 5), torch.nan)
    assert torch.equal(margin_curvature(network, images), margin_curvature(network))


def test_the_checker_proves_what_is_claimed_of_many_classes(network, monkeypatch):
    claims = margin_curvature(network, _images()).numpy()
    own = (claims < margin_curvature(network).numpy()).sum()
    asked, whole = [], checked._last_gradient
    monkeypatch.setattr(
        checked, "_last_gradient", lambda *given: asked.append(given) or whole(*given)
    )
    proved = curvature_upper(seen(network), claims)
    assert (proved <= claims * (1 + TOLERANCE)).all()
    assert len(asked) == own > 0


def test_the_checker_refuses_less_than_can_be_proved_of_many_classes(network, every_pair):
    claims = every_pair.numpy() * (1 - 1e-6)
    proved = curvature_upper(seen(network), claims)
    refused = proved > claims * (1 + TOLERANCE)
    assert refused[~np.eye(CLASSES, dtype=bool)].all()
