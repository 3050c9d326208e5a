"""Enclosures of layers: the checker proves what the certifier proves, and nothing that is false."""

import shutil

import numpy as np
import pytest
import torch

from raycrt.activations import ACTIVATIONS
from raycrt.bounds.enclosure import NetworkEnclosure, leading_directions
from raycrt.networks import checkpoint
from raycrt.specs import validate
from raycrt.verify import verify_run
from raycrt.verify.enclosure import Enclosure
from raycrt.verify.enclosure.forms import Forms, small_norms
from raycrt.verify.enclosure.forms import leading_directions as our_directions
from raycrt.verify.enclosure.quadratics import Quadratics
from raycrt.verify.hidden import Hidden
from raycrt.verify.model import Model
from tests.models import MIXED, MIXED_IMAGES, mixed_network, random_network
from tests.verify.runs import edit_manifest, manifest_of, rewrite_rows, rows_of, spec_of, write_run
from tests.verify.seen import seen

LABEL = 0


def _theirs(network, x, radius):
    """The certifier's floors, and the size of the margins on the ball."""
    enclosure = NetworkEnclosure.of(network)
    *hidden, logits = enclosure.jacobians(x)
    targets = torch.arange(1, len(logits))
    floors = enclosure.floors(x, radius, LABEL, targets, leading_directions(torch.cat(hidden)))
    values = network(x[None])[0]
    slopes = torch.linalg.vector_norm(logits[LABEL] - logits[1:], dim=1)
    return floors.numpy(), (values.abs().max() + slopes * radius).numpy()


def _ours(model, x, radius):
    return Enclosure(model.joined, x.numpy(), radius).floors(LABEL, np.arange(1, model.classes))


def _sampled(network, x, radius):
    """The least margins (classes - 1,) among points of the ball, some of them on gradients."""
    u = torch.randn(300, len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = radius * u / u.norm(dim=1, keepdim=True)
    for _ in range(20):
        at = (x + u).requires_grad_()
        logits = network(at)
        margins = logits[:, LABEL, None] - logits[:, 1:]
        wanted = margins.gather(1, torch.arange(len(u))[:, None] % margins.shape[1])
        (slope,) = torch.autograd.grad(wanted.sum(), at)
        u = u - 0.3 * radius * slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-300)
        u = u * (radius / u.norm(dim=1, keepdim=True)).clamp(max=1)
    logits = network(x + u).detach()
    return (logits[:, LABEL, None] - logits[:, 1:]).amin(0).numpy()


def _assert_proved_twice(network, model, x, radius):
    theirs, scale = _theirs(network, x, radius)
    ours = _ours(model, x, radius)
    # Beyond these sizes nothing is proved, and differences in rounding grow with each layer.
    near = theirs > -3 * scale
    assert (ours >= theirs - 1e-9 * scale)[near].all()
    assert (ours <= theirs + 1e-4 * scale)[near].all()
    sampled = _sampled(network, x, radius)
    assert (ours <= sampled).all() and (theirs <= sampled).all()
    return near.mean()


@pytest.mark.parametrize("gain", [1e-3, 2.0, 12.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_floors_are_those_of_the_certifier(name, gain):
    network = random_network(4, features=40, width=20, name=name, gain=gain).double()
    network.requires_grad_(False)
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    radii = (1e-9, 1e-3, 0.1, 1.0, 30.0)
    near = [_assert_proved_twice(network, seen(network), x, radius) for radius in radii]
    assert sum(near) >= 2


@pytest.mark.parametrize("name", ["residual", "block", "normalised", *MIXED_IMAGES])
def test_floors_of_other_layers_are_those_of_the_certifier(tmp_path, name):
    layers, shape = (MIXED | MIXED_IMAGES)[name], (2, 6, 8) if name in MIXED_IMAGES else (5,)
    network = mixed_network(layers, shape=shape, gain=1.0).double().requires_grad_(False)
    spec = validate({"model": {"layers": layers}})
    checkpoint.save_model(tmp_path, network, spec)
    model = Model.load(tmp_path / checkpoint.MODEL, spec.model, shape)
    x = torch.randn(network.layers[0].in_features, dtype=torch.float64)
    near = [_assert_proved_twice(network, model, x, radius) for radius in (1e-4, 0.03, 0.3)]
    assert sum(near) >= 2


@pytest.mark.parametrize("power", [-300, 300])
def test_floors_do_not_depend_on_the_unit_of_the_input(power):
    """Fourth powers of the rows' lengths underflow, or overflow, but for the division by a unit."""
    network = random_network(4).double().requires_grad_(False)
    x = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = _theirs(network, x, 0.1)[0], _ours(seen(network), x, 0.1)
    network.layers[0].weight.mul_(2.0**power)
    x, radius = x * 2.0**-power, 0.1 * 2.0**-power
    after = _theirs(network, x, radius)[0], _ours(seen(network), x, radius)
    np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_quadratics_bound_what_they_leave(name):
    centre = np.array([-30.0, -3.0, -0.5, 0.0, 0.2, 2.0, 1e3])
    hidden = Hidden(activation=ACTIVATIONS[name], active=6, width=7)
    for reach in (0.0, 1e-7, 0.1, 1.0, 20.0):
        found = Quadratics.fitted(hidden, centre, centre - reach, centre + 2 * reach)
        d = reach * np.linspace(-1, 2, 1000)[:, None]
        d = (centre + d) - centre
        left = hidden.value(centre + d) - found.value - found.slope * d - found.bend * d**2
        largest = np.abs(left).max(0)
        rounding = 1e-14 * (1 + np.abs(centre))
        assert (largest <= found.rest + rounding).all()
        assert (found.rest[:-1] <= 1.5 * largest[:-1] + 1e-10 * (1 + np.abs(centre[:-1]))).all()


def test_forms_are_bounded_closely():
    """Of rows that are long in few directions, as those of deep networks are."""
    generator = np.random.default_rng(0)
    longest = np.diag(2.0 ** -np.arange(60)) @ np.linalg.qr(generator.normal(size=(60, 60)))[0]
    jacobians = [generator.normal(size=(width, 60)) @ longest for width in (70, 40)]
    rows = np.concatenate(jacobians)
    forms = Forms.of(jacobians, our_directions(rows))
    weights = generator.normal(size=(5, len(rows)))
    exact = [np.linalg.norm((rows.T * w) @ rows, 2) for w in weights]
    assert (forms.norms(weights) >= exact).all()
    assert (forms.norms(weights) <= 1.01 * np.array(exact)).all()
    positive = np.abs(weights[:, 70:])
    exact = [np.linalg.norm((rows[70:].T * w) @ rows[70:]) for w in positive]
    np.testing.assert_allclose(forms.norms_of_positive(positive, slice(70, 110)), exact, rtol=1e-6)


def test_norms_of_small_matrices():
    matrices = np.random.default_rng(0).normal(size=(6, 32, 32))
    matrices = matrices * 10.0 ** np.array([-200, -3, 0, 3, 200, -320])[:, None, None]
    matrices[-1] = 0.0
    exact = np.linalg.norm(matrices, 2, axis=(1, 2))
    found = small_norms(matrices)
    assert (found >= exact).all() and (found <= 1.06 * exact).all()
    assert np.isnan(small_norms(np.full((1, 3, 3), np.nan))[0])


# Runs


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    spec = spec_of(6, "tanh", rows=12, region="local")
    return write_run(tmp_path_factory.mktemp("enclosed") / "run", spec, gain=2.5, seed=4)


@pytest.fixture
def run(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "run")


def _enclosed(rows):
    """A row whose radius is proved by its enclosure alone."""
    return next(row for row in rows if row["enclosure_radius"] * (1 - 1e-9) < row["radius"])


@pytest.mark.parametrize(
    ("name", "deployment", "model"),
    [("silu", "exact", {}), ("softplus", "float32", {}), ("tanh", "exact", {"channels": [4]})],
)
def test_honest_runs_pass(tmp_path, name, deployment, model):
    certify = {"region": "local", "deployment": deployment}
    run = write_run(tmp_path, spec_of(4, name, rows=8, model=model, **certify), gain=2.0, seed=4)
    assert sum(row["enclosure_radius"] > 0 for row in rows_of(run).to_pylist()) >= 4
    report = verify_run(run)
    assert report.sound, report.findings[:3]


def test_enclosures_are_needed(honest, run):
    """Radii rest on them, and a radius that is smaller than the ball needs no more."""
    rows = rows_of(run).to_pylist()
    enclosed = {row["index"] for row in rows if row["enclosure_radius"] > 0}
    assert verify_run(honest).sound
    rewrite_rows(run, [{**row, "enclosure_radius": 0.0} for row in rows])
    failed = {finding.index for finding in verify_run(run).findings}
    assert len(failed) >= 2 and failed <= enclosed
    row = _enclosed(rows)
    row["radius"] *= 0.9
    if row["binding"] == row["runner_up"]:
        row["radius_runner_up"] = row["radius"]
    rewrite_rows(run, rows)
    assert verify_run(run).sound


def _larger_ball(run, row):
    row["enclosure_radius"] *= 1.5


def _larger_radius(run, row):
    row["radius"] *= 1.0001
    row["radius_runner_up"] = max(row["radius"], row["radius_runner_up"])


def _larger_ball_and_radius(run, row):
    _larger_ball(run, row)
    row["radius"] = row["enclosure_radius"] * (1 - 5e-10)
    row["radius_runner_up"] = max(row["radius"], row["radius_runner_up"])


def _nan(run, row):
    row["enclosure_radius"] = float("nan")


def _infinite(run, row):
    row["enclosure_radius"] = float("inf")


def _negative(run, row):
    row["enclosure_radius"] *= -1


def _of_no_claim(run, row):
    row |= {"status": "no_radius", "radius": 0.0, "radius_runner_up": 0.0}
    row |= {"witness_classes": [], "witness_points": [], "witness_curvatures": []}
    row["region_radius"] = float("inf")


def _of_a_global_run(run, row):
    edit_manifest(run, region="global")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_larger_ball, "no more than"),
        (_larger_radius, "no more than"),
        (_larger_ball_and_radius, "no more than"),
        (_nan, "enclosure_radius is nan"),
        (_infinite, "enclosure_radius is inf"),
        (_negative, "enclosure_radius is -"),
        (_of_no_claim, "which does not fit the manifest, model or status 'no_radius'"),
        (_of_a_global_run, "which does not fit the manifest"),
    ],
)
def test_a_forged_enclosure_is_found(run, tamper, message):
    rows = rows_of(run).to_pylist()
    row = _enclosed(rows)
    tamper(run, row)
    rewrite_rows(run, rows)
    found = [each.sentence for each in verify_run(run).findings if each.index == row["index"]]
    assert any(message in sentence for sentence in found), found


def test_a_row_proves_nothing_by_a_ball_that_is_only_stated(run):
    rows = rows_of(run).to_pylist()
    row = next(row for row in rows if row["status"] == "certified")
    row["enclosure_radius"] = 2 * row["radius"]
    row["radius"] = row["enclosure_radius"] * (1 - 5e-10)
    row["radius_runner_up"] = max(row["radius"], row["radius_runner_up"])
    rewrite_rows(run, rows)
    assert verify_run(run).failed == 1


def test_networks_of_two_layers_have_none(tmp_path):
    run = write_run(tmp_path, spec_of(2, rows=4, region="local"))
    rows = rows_of(run).to_pylist()
    assert all(row["enclosure_radius"] == 0 for row in rows)
    rows[0]["enclosure_radius"] = rows[0]["radius"]
    rewrite_rows(run, rows)
    (finding,) = verify_run(run).findings
    assert "enclosure_radius is" in finding.sentence and finding.index == rows[0]["index"]


def test_older_versions_have_no_such_column(tmp_path):
    run = write_run(tmp_path, spec_of(3, rows=4))
    rows = rows_of(run).to_pylist()
    assert manifest_of(run)["schema_version"] == 8
    edit_manifest(run, schema_version=7)
    assert "the column 'enclosure_radius' does not belong" in str(verify_run(run).findings)
    rewrite_rows(run, rows)
    assert verify_run(run).sound
    edit_manifest(run, schema_version=8)
    assert "the column 'enclosure_radius' is missing" in str(verify_run(run).findings)
