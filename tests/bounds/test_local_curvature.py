"""Local curvature lies above exact Hessians on the ball, and what it proves below every attack."""

import math

import pytest
import torch

from raycrt import Certifier, InvalidInput
from raycrt.activations import ACTIVATIONS
from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.rounding import RoundingErrors
from raycrt.evaluation.attacks import attack
from tests.models import LINEAR, random_network

AT = (0.1, 1.0, 10.0)


def _local(network):
    return LocalCurvature.of(network, RoundingErrors.of(network))


def _points(n, features=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator, dtype=torch.float64)


def _in_ball(n, radius, features=5, seed=1):
    """Half of the points inside, half on the sphere."""
    direction = torch.nn.functional.normalize(_points(n, features, seed), dim=1)
    size = torch.linspace(0, 1, n, dtype=torch.float64).mul(2).clamp(max=1)
    return radius * size[:, None] * direction


def _most_negative(network, y, t, points):
    def margin(x):
        logits = network(x[None])[0]
        return logits[y] - logits[t]

    hessians = torch.func.vmap(torch.func.hessian(margin))(points)
    return -float(torch.linalg.eigvalsh(hessians.detach())[:, 0].min())


@pytest.mark.parametrize(
    ("depth", "name"),
    [(4, name) for name in ACTIVATIONS] + [(2, "softplus"), (3, "silu"), (5, "tanh")],
)
def test_no_hessian_on_the_ball_bends_more(depth, name):
    network = random_network(depth, name=name, seed=depth).double()
    local, everywhere = _local(network), margin_curvature(network)
    targets = torch.tensor([1, 3])
    for x, radius in zip(_points(3), (1e-3, 0.2, 1.5), strict=True):
        m = local(x, radius, 2, targets)
        for bound, t in zip(m.tolist(), targets.tolist(), strict=True):
            points = x + _in_ball(24, radius)
            assert _most_negative(network, 2, t, points) <= bound
            if depth == 2 or radius < 1e-2:
                assert bound <= float(everywhere[2, t]) * (1 + 1e-7)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_on_a_small_ball_the_bound_is_the_hessian_nearly(depth):
    """Two layers: exactly it. Deeper, negative weights are cut off after the first layer only."""
    network = random_network(depth, name="softplus", seed=depth).double()
    x = _points(1)[0]
    bound = float(_local(network)(x, 1e-7, 0, torch.tensor([1]))[0])
    exact = max(0.0, _most_negative(network, 0, 1, x[None]))
    assert exact <= bound <= (exact * (1 + 1e-4) if depth == 2 else max(exact * 10, 0.2))


def test_the_bound_grows_with_the_ball():
    network = random_network(4, name="tanh").double()
    local, x = _local(network), _points(1)[0]
    bounds = [float(local(x, r, 0, torch.tensor([1]))[0]) for r in (0.0, 0.01, 0.1, 1.0)]
    assert bounds == sorted(bounds) and bounds[0] < bounds[-1]


def test_enough_is_returned_where_it_is_proved_and_only_there():
    network = random_network(3).double()
    local, x, targets = _local(network), _points(1)[0], torch.tensor([1, 2])
    m = local(x, 0.3, 0, targets)
    given = torch.tensor([float(m[0]) * 1.001, float(m[1]) * 0.999], dtype=torch.float64)
    decided = local(x, 0.3, 0, targets, enough=given)
    assert float(decided[0]) == float(given[0])
    assert float(decided[1]) == pytest.approx(float(m[1]), rel=1e-7)


def test_a_linear_network_has_no_curvature_on_a_ball():
    m = _local(random_network(3, name=LINEAR))(_points(1)[0], 1.0, 0, torch.tensor([1, 2]))
    assert (m <= 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "name"),
    [(3, "sigmoid"), (3, "gelu"), (2, "softplus"), (4, "tanh"), (5, "silu")],
)
def test_local_radii_lie_between_the_global_ones_and_attacks(depth, name):
    network = random_network(depth, name=name, seed=10 + depth)
    images = _points(8).float()
    wide = Certifier(network)(images)
    found = Certifier(network, region="local", radii=AT)(images)
    assert (found.radius >= wide.radius).all()
    assert (found.radius <= attack(network, images).distance).all()
    assert (found.radius <= found.radius_runner_up).all()
    if depth > 2:
        assert float(found.radius.mean()) > float(wide.radius.mean())
    raised = torch.isfinite(found.region_radius)
    assert (found.radius <= found.region_radius).all()
    at_row = found.witnesses.row
    shift = found.witnesses.point.double().norm(dim=1)
    m = Certifier(network).curvature[found.prediction[at_row], found.witnesses.target]
    local = found.witnesses.curvature < m
    assert (shift <= found.region_radius[at_row])[local].all()
    assert raised[at_row[local]].all()


@pytest.mark.parametrize(("depth", "name"), [(2, "softplus"), (2, "tanh"), (4, "silu")])
def test_no_point_of_a_fine_grid_inside_a_local_radius_changes_class(depth, name):
    network = random_network(depth, features=2, width=16, classes=3, name=name, gain=3.0)
    images = 2 * _points(10, 2).float()
    found = Certifier(network, region="local", radii=(0.05, 0.2, 0.5, 1.0))(images)
    assert (torch.isfinite(found.region_radius) | (found.enclosure_radius > 0)).any()
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    exact = network.double()
    for image, radius, label in zip(images, found.radius, found.prediction, strict=True):
        rings = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None, None] * radius * circle
        assert (exact((image.double() + rings).reshape(-1, 2)).argmax(1) == label).all()


def test_a_stated_radius_is_certified_strictly():
    """Where a ball around a stated radius is wholly proved, the radius exceeds the stated one."""
    network = random_network(3, gain=2.0)
    images = _points(60).float()
    for at in (0.3, 0.5, 0.8):
        found = Certifier(network, region="local", radii=(at,))(images)
        full = found.region_radius.isfinite() & (found.radius > at * (1 - 1e-5))
        assert full.any() and (found.radius[full & (found.region_radius > at)] > at).all()


@pytest.mark.slow
@pytest.mark.parametrize("depth, name", [(4, "softplus")])
def test_every_stated_radius_is_decided_as_if_it_were_alone(depth, name):
    network = random_network(depth, name=name, seed=2, gain=1.7)
    images = _points(20).float()
    stated = (0.1, 0.3, 0.8, 1.0)
    together = Certifier(network, region="local", radii=stated)(images)
    alone = [Certifier(network, region="local", radii=(r,))(images) for r in stated]
    for r, each in zip(stated, alone, strict=True):
        assert torch.equal(together.certified_at(r), each.certified_at(r))
        assert (together.radius >= each.radius * (1 - 1e-5)).all()
    balls = together.region_radius
    assert len(balls[torch.isfinite(balls)].unique()) >= 2
    assert (together.radius <= attack(network, images).distance).all()


def test_rows_with_radii_of_their_own_are_decided_as_by_a_stated_radius():
    network = random_network(3, gain=2.0)
    images = _points(60).float()
    own = torch.tensor([0.3, 0.8], dtype=torch.float64).repeat(30)
    found = Certifier(network, region="local")(images, at=own)
    decided = found.certified_at(own)
    for at in (0.3, 0.8):
        full = Certifier(network, region="local", radii=(at,))(images)
        rows = (own == at) & ((full.radius - at).abs() > 1e-4 * at)
        assert torch.equal(decided[rows], full.radius[rows] > at)
    # Some only by a ball.
    assert (decided & torch.isfinite(found.region_radius)).any()
    assert (found.radius <= attack(network, images).distance).all()


@pytest.mark.parametrize("depth", [2, 4])
def test_the_best_ball_is_searched_whatever_radii_are_stated(depth):
    network = random_network(depth, gain=1.5)
    images = _points(30).float()
    wide = Certifier(network)(images)
    found = Certifier(network, region="local")(images)
    assert (found.radius >= wide.radius).all()
    # With two layers and signs kept, balls of these images prove no more.
    assert depth == 2 or (found.radius > 1.1 * wide.radius).sum() > 10
    for ball in (0.7, 0.9, 1.1, 1.4):
        decided = Certifier(network, region="local")(images, at=ball * found.radius)
        assert (decided.radius <= found.radius * 1.02).all()
    assert (found.radius <= attack(network, images).distance).all()


def test_a_row_at_its_own_radius_gets_no_other_ball():
    network = random_network(2, gain=1.5)
    images = _points(30).float()
    wide = Certifier(network)(images)
    at = float(wide.radius.median())
    found = Certifier(network, region="local")(images, at=at)
    beyond = wide.radius > at
    assert torch.isinf(found.region_radius[beyond]).all()


@pytest.mark.parametrize(
    ("name", "region"), [("sigmoid", "global"), ("gelu", "global"), ("tanh", "local")]
)
def test_float32_evaluations_agree_inside_float32_radii(name, region):
    network = random_network(3, name=name, seed=3)
    images = _points(15).float()
    options = {"region": region, "radii": AT if region == "local" else ()}
    exact = Certifier(network, **options)(images)
    found = Certifier(network, deployment="float32", **options)(images)
    if region == "global":
        assert (found.radius <= exact.radius).all()
        assert (found.radius < exact.radius)[exact.radius > 0].all()
    for image, radius, label in zip(images, found.radius, found.prediction, strict=True):
        sphere = torch.nn.functional.normalize(_points(400), dim=1) * radius * (1 - 1e-6)
        points = (image + sphere).float()
        inside = (points.double() - image.double()).norm(dim=1) < radius
        with torch.no_grad():
            assert (network(points[inside]).argmax(1) == label).all()


def test_margins_below_float32_rounding_are_not_certified_for_float32():
    network = random_network(2)
    with torch.no_grad():
        last = network.layers[-1]
        last.weight[1], last.bias[1] = last.weight[0], last.bias[0] + 1e-5
        last.bias[:2] += 100
    images = _points(5).float()
    assert (Certifier(network)(images).radius > 0).all()
    assert (Certifier(network, deployment="float32")(images).radius == 0).all()


def test_bad_options():
    network = random_network(2)
    with pytest.raises(InvalidInput, match="radii that balls are to prove go with region local"):
        Certifier(network, radii=(0.5, 1.0))
    with pytest.raises(InvalidInput, match="region is global or local"):
        Certifier(network, region="here")
    with pytest.raises(InvalidInput, match="radii increase strictly from above 0"):
        Certifier(network, region="local", radii=(1.0, 0.5))
    with pytest.raises(InvalidInput, match="deployment is exact, or float32"):
        Certifier(network, deployment="float16")
