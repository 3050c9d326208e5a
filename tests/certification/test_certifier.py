"""Certificates: exact where the truth is known, below every attack, and closed where they fail."""

import math

import pytest
import torch

import raycrt
from raycrt import Certifier, InvalidInput, Status
from raycrt.activations import ACTIVATIONS
from raycrt.evaluation.attacks import attack
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.convolution import Convolution
from raycrt.networks.network import build
from raycrt.specs import ModelSpec
from tests.models import LINEAR, random_network


def _images(n=40, features=5, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def test_linear_network_radius_is_margin_over_norm():
    network = random_network(3, name=LINEAR, classes=5)
    images = _images(100)
    found = Certifier(network)(images)
    exact = network.double()
    with torch.no_grad():
        jacobian = torch.func.jacrev(lambda x: exact(x[None])[0])(images[0].double())
        logits = exact(images.double())
    for i in range(len(images)):
        y = int(logits[i].argmax())
        others = [t for t in range(5) if t != y]
        truth = min(
            float((logits[i, y] - logits[i, t]) / (jacobian[y] - jacobian[t]).norm())
            for t in others
        )
        assert float(found.radius[i]) == pytest.approx(truth, rel=1e-6, abs=1e-12)
        assert float(found.radius[i]) <= truth


@pytest.mark.parametrize(
    ("depth", "name"),
    [(2 + i % 2, name) for i, name in enumerate(ACTIVATIONS)] + [(4, "softplus"), (5, "tanh")],
)
def test_no_attack_lies_inside_a_radius(depth, name):
    network = random_network(depth, name=name, seed=10 + depth)
    images = _images(30)
    found = Certifier(network)(images)
    distance = attack(network, images).distance
    assert (found.radius <= distance).all()
    assert (found.radius <= found.radius_runner_up).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_point_of_a_fine_grid_inside_the_radius_changes_class(name):
    network = random_network(2, features=2, width=20, classes=3, name=name, gain=3.0)
    images = 2 * _images(12, features=2)
    found = Certifier(network)(images)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    exact = network.double()
    for image, radius, label in zip(images, found.radius, found.prediction, strict=True):
        rings = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None, None] * radius * circle
        assert (exact((image.double() + rings).reshape(-1, 2)).argmax(1) == label).all()


@pytest.mark.parametrize("options", [{"steps": 0}, {}, {"region": "local", "radii": (0.5,)}])
@pytest.mark.parametrize("depth", [2, 4])
def test_without_curvature_every_way_finds_the_same_radius(depth, options):
    """m = 0 for every pair: the closed form is exact, and neither solver nor ball divides by it."""
    network = random_network(depth, name=LINEAR, features=8, width=20, classes=5)
    certifier = Certifier(network, **options)
    assert (certifier.curvature == 0).all()
    found = certifier(_images(features=8))
    assert (found.status == Status.CERTIFIED).all()
    distance = attack(network, _images(features=8)).distance
    assert (found.radius <= distance).all()
    torch.testing.assert_close(found.radius, distance, rtol=1e-5, atol=0)


def test_zero_gap_on_gentle_networks():
    """Where the curvature is small the certificate meets the attack: the radius is exact."""
    network = random_network(2, gain=0.7)
    images = _images(60)
    found = Certifier(network)(images)
    ratio = found.radius / attack(network, images).distance
    assert float(ratio.median()) > 0.999


def test_the_solver_only_raises_radii():
    network = random_network(2, gain=1.5)
    images = _images(60)
    closed, solved = Certifier(network, steps=0)(images), Certifier(network)(images)
    assert (solved.radius >= closed.radius).all()
    assert float(solved.radius.mean()) > float(closed.radius.mean())
    assert len(closed.witnesses.row) == 0 < len(solved.witnesses.row)


def test_all_classes_bind_not_only_the_runner_up():
    network = random_network(2, classes=10, gain=1.5)
    found = Certifier(network)(_images(300))
    assert (found.binding != found.runner_up).any()
    assert (found.radius < found.radius_runner_up)[found.binding != found.runner_up].any()


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {}, {"region": "local", "radii": (0.1, 0.3)}, {"deployment": "float32"}],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_image_changes_no_bit_of_the_others(options, bad):
    """Against the batch in which it is blank, and but for products of fewer rows without it."""
    certifier = Certifier(random_network(3, gain=1.5), **options)
    images = _images(12)
    images[5] = 0
    blank = certifier(images)
    images[5, 3] = bad
    found = certifier(images)
    others = torch.arange(12) != 5
    for name in ("radius", "radius_runner_up", "prediction", "binding", "status", "region_radius"):
        assert torch.equal(getattr(found, name)[others], getattr(blank, name)[others]), name
    kept = blank.witnesses.take(blank.witnesses.row != 5)
    assert torch.equal(found.witnesses.point, kept.point)
    assert (found.radius[others] > 0).all() and int(found.status[5]) == Status.NON_FINITE_INPUT
    alone = certifier(images[others])
    assert torch.equal(found.prediction[others], alone.prediction)
    torch.testing.assert_close(found.radius[others], alone.radius, rtol=1e-6, atol=0)


def test_tied_logits_have_no_radius():
    network = random_network(2)
    with torch.no_grad():
        last = network.layers[-1]
        last.weight[1], last.bias[1] = last.weight[0], last.bias[0]
        last.bias[:2] += 100
    found = Certifier(network)(_images(5))
    assert (found.radius == 0).all() and (found.status == Status.TIED).all()


@pytest.mark.parametrize("options", [{}, {"region": "local", "radii": (0.1,)}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_non_finite_weights_prove_nothing(layer, part, value, options):
    network = random_network(3)
    with torch.no_grad():
        getattr(network.layers[layer], part).view(-1)[-1] = value
    found = Certifier(network, **options)(_images(5))
    if (layer, part, value) == (2, "bias", -math.inf):
        assert (found.status == Status.CERTIFIED).all() and (found.prediction != 3).all()
        return
    assert (found.radius_runner_up == 0).all() and len(found.witnesses.row) == 0
    assert (found.radius == 0).all() and (found.status == Status.NON_FINITE_NETWORK).all()


@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("layer", [0, -1])
def test_a_network_without_gradients_predicts_the_same_everywhere(steps, layer):
    network = random_network(3)
    with torch.no_grad():
        network.layers[layer].weight.zero_()
        network.layers[-1].bias.copy_(torch.tensor([30.0, 20.0, 10.0, 0.0]))
    found = Certifier(network, steps=steps)(_images(3))
    assert (found.radius == math.inf).all() and (found.radius_runner_up == math.inf).all()
    assert (found.status == Status.CONSTANT).all() and len(found.witnesses.row) == 0


@pytest.mark.parametrize("steps", [0, 60])
def test_a_class_that_is_another_less_a_constant_takes_no_radius_away(steps):
    """Its margin to that class has no gradient; the others are what they are without it."""
    network, without = random_network(2), random_network(2, classes=3)
    with torch.no_grad():
        last = network.layers[-1]
        last.weight[3], last.bias[3] = last.weight[0], last.bias[0] - 0.5
        without.layers[0].load_state_dict(network.layers[0].state_dict())
        without.layers[1].weight.copy_(last.weight[:3])
        without.layers[1].bias.copy_(last.bias[:3])
    found, expected = (Certifier(n, steps=steps)(_images()) for n in (network, without))
    assert (found.prediction == 0).any() and (found.prediction != 0).any()
    assert torch.equal(found.prediction, expected.prediction)
    assert torch.equal(found.status, expected.status) and (found.radius > 0).all()
    assert torch.allclose(found.radius, expected.radius, rtol=1e-3)


@pytest.mark.parametrize("steps", [0, 60])
def test_an_image_without_gradient_leaves_the_others_as_they_are(steps):
    """Far out tanh is flat to the last bit: no slope is left in any type."""
    network = random_network(2, name="tanh")
    images = _images(6)
    images[2] *= 1e6
    certifier = Certifier(network, steps=steps)
    found = certifier(images)
    others = [0, 1, 3, 4, 5]
    alone = certifier(images[others])
    assert torch.equal(found.status[others], alone.status) and (alone.radius > 0).all()
    assert torch.allclose(found.radius[others], alone.radius, rtol=1e-6)
    assert 0 <= float(found.radius[2]) <= float(images[2].norm())


def test_a_dead_class_whose_margin_has_a_gradient_takes_no_radius_away():
    network = random_network(2)
    with torch.no_grad():
        network.layers[-1].weight[3], network.layers[-1].bias[3] = 0, -1e4
    found = Certifier(network)(_images())
    assert (found.status == Status.CERTIFIED).all() and (found.radius > 0).all()
    assert (found.binding != 3).all()
    assert (found.radius <= attack(network, _images()).distance).all()


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "name"), [(2, "softplus"), (2, "tanh"), (3, "silu")])
def test_rows_are_decided_at_their_own_radii_as_by_full_certificates(depth, name):
    network = random_network(depth, name=name, classes=10, gain=1.5)
    images = _images(120)
    certifier = Certifier(network, batch_size=50)
    full, closed = certifier(images), Certifier(network, steps=0)(images)
    factor = torch.tensor([0.5, 0.97, 0.999, 1.001, 1.03, 2.0]).double()
    own = full.radius * factor[torch.arange(120) % 6]
    found = certifier(images, at=own)
    assert torch.equal(found.certified_at(own), full.radius > own)
    assert (found.certified_at(own) & ~closed.certified_at(own)).any()
    assert (found.radius <= attack(network, images).distance).all()
    assert torch.equal(found.certified_at(0.1), found.radius > 0.1)


def test_work_stops_where_a_row_is_decided(solved):
    """Of what could be proved, less is where less is asked for, and fewer classes are solved."""
    network = random_network(2, classes=10, gain=1.5)
    images = _images(200)
    certifier = Certifier(network, runner_up=False)
    full = certifier(images)
    everything = sum(solved)
    for at in (full.radius * 0.5, full.radius * 2):
        solved.clear()
        certifier(images, at=at)
        assert sum(solved) < everything
    easy = certifier(images, at=1e-6)
    assert (easy.radius < full.radius).any() and len(easy.witnesses.row) == 0
    mixed = certifier(images, at=torch.where(torch.arange(200) < 100, 1e-6, math.inf))
    torch.testing.assert_close(mixed.radius[100:], full.radius[100:], rtol=1e-5, atol=0)
    torch.testing.assert_close(mixed.radius[:100], easy.radius[:100], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (torch.ones(3), r"one for each image` must hold, but got \(shape=\(3,\), images=4\)"),
        (torch.ones(4, 1), r"shape=\(4, 1\)"),
        (0.0, r"`at > 0` must hold, but got \(at=\[0.0\]\)"),
        (torch.tensor([1.0, 1.0, -2.0, 1.0]), r"at=\[-2.0\]"),
        (math.nan, r"at=\[nan\]"),
        ((0.5, 1.0), r"one for each image` must hold, but got \(shape=\(2,\), images=4\)"),
    ],
)
def test_bad_radii_are_refused_before_curvature_is_proved(monkeypatch, at, message):
    monkeypatch.setattr(
        "raycrt.certification.certifier.margin_curvature", lambda network: pytest.fail("proved")
    )
    with pytest.raises(InvalidInput, match=message):
        raycrt.certify(random_network(2), _images(4), at=at)


def test_certify_takes_a_radius_for_each_row_and_stated_radii_for_balls():
    network, images = random_network(3, gain=2.0), _images(20)
    at = torch.linspace(0.1, 2, 20)
    assert torch.equal(
        raycrt.certify(network, images, at=at).radius, Certifier(network)(images, at).radius
    )
    stated = raycrt.certify(network, images, radii=(0.5, 1.0), region="local")
    assert torch.isfinite(stated.region_radius).any()
    searched = raycrt.certify(network, images, region="local")
    # Where an enclosure proves much more than curvature, balls of curvature are not searched.
    assert (searched.radius >= raycrt.certify(network, images).radius).all()
    assert searched.radius.mean() > 0.95 * stated.radius.mean()


def test_batches_do_not_change_rows():
    network = random_network(3)
    images = _images(50)
    whole, parts = (
        Certifier(network, batch_size=50)(images),
        Certifier(network, batch_size=7)(images),
    )
    assert torch.allclose(whole.radius, parts.radius, rtol=1e-5)
    assert (whole.prediction == parts.prediction).all()


def test_a_batch_of_any_size_is_cut_to_the_memory_budget():
    """The largest batch that the certifier sees stays within the budget's rows."""
    certifier = Certifier(random_network(2), batch_size=10**9, tolerances=Tolerances(memory=20_000))
    seen = [len(part) for part in certifier.batches(_images(50))]
    assert sum(seen) == 50 and max(seen) < 50
    assert torch.allclose(
        certifier(_images(50)).radius, Certifier(random_network(2))(_images(50)).radius, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "least"), [((4,), 0.9), ((4, 3), 0.5)])
def test_convolutions_too_large_to_be_formed_are_certified(monkeypatch, channels, least):
    """By the torus: no matrix of theirs is ever made. Two in a row lose what their product says."""
    torch.manual_seed(0)
    network = build(ModelSpec(channels=channels, stride=1, depth=1), (1, 6, 6), 4)
    images = torch.rand(30, 1, 6, 6)
    formed = Certifier(network)(images)
    for module in ("networks.layers.affine", "margins.first_layer", "bounds.global_curvature"):
        monkeypatch.setattr(f"raycrt.{module}.DENSE_ENTRIES", 1000)
    monkeypatch.setattr(Convolution, "matrix", lambda self: pytest.fail("a matrix was formed"))
    assert not any(layer.dense for layer in network.layers[:-1])
    found = Certifier(network)(images)
    assert (found.status == Status.CERTIFIED).all()
    assert (found.radius <= attack(network, images).distance).all()
    ratio = found.radius / formed.radius
    assert float(ratio.max()) < 1 + 1e-3 and float(ratio.min()) > least


def test_bad_input():
    certifier = Certifier(random_network(2))
    with pytest.raises(InvalidInput, match="as many numbers as the network takes"):
        certifier(torch.zeros(2, 7))
    with pytest.raises(InvalidInput, match="at least one image"):
        certifier(torch.zeros(0, 5))
    with pytest.raises(InvalidInput, match=r"`steps >= 0` must hold, but got \(steps=-1\)"):
        Certifier(random_network(2), steps=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("leading", 0), ("directions", -1), ("patience", 2.5), ("missed", math.nan), ("lost", -0.1)],
)
def test_tolerances_that_are_none_are_refused(name, value):
    with pytest.raises(InvalidInput, match=f"`{name} >= "):
        Tolerances(**{name: value})
