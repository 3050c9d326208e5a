"""The checker's own bounds: they hold where exact values are known, and are not idle."""

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import raycrt.verify
from raycrt import Certifier
from raycrt.activations import ACTIVATIONS, NUMPY, Activation
from raycrt.bounds.curvature import margin_curvature
from raycrt.bounds.error_tables import ErrorTables
from raycrt.bounds.rounding import FirstLayerError, RoundingErrors
from raycrt.errors import InvalidInput
from raycrt.networks.network import build
from raycrt.specs import ModelSpec
from raycrt.training.folding.isometries import deepened
from raycrt.verify.checker import Checker
from raycrt.verify.convolution import Geometry, unrolled
from raycrt.verify.curvature import curvature_upper
from raycrt.verify.inputs import InArrays
from raycrt.verify.model import Model
from raycrt.verify.norms import gram_upper, norm_upper
from raycrt.verify.radius import FLOAT32_UNIT, UNIT, Errors, floor, witness_radius
from raycrt.verify.table import Rows
from tests.models import LINEAR, random_network
from tests.verify.seen import seen


def _model(depth: int, name: str | Activation, **options) -> Model:
    """The random network of `random_network`, as the checker sees it."""
    return seen(random_network(depth, name=name, **options))


def _scaled(model: Model, scale: float) -> Model:
    """All weights times `scale`, without biases."""
    weights = tuple(w * scale for w in model.weights)
    return replace(model, weights=weights, biases=tuple(0 * b for b in model.biases))


def _nothing_claimed(model: Model) -> np.ndarray:
    return np.full((model.classes, model.classes), np.nan)


# Norms


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 40), (90, 30)])
def test_norms_lie_above_the_singular_value_and_close_to_it(shape):
    rng = np.random.default_rng(0)
    for matrix in (rng.normal(size=shape), np.outer(*(rng.normal(size=n) for n in shape))):
        exact = np.linalg.svd(matrix, compute_uv=False)[0]
        assert exact <= norm_upper(matrix) <= exact * (1 + 1e-8)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
def test_norms_of_very_small_and_very_large_matrices(scale):
    matrix = np.random.default_rng(0).normal(size=(5, 8))
    exact = np.linalg.svd(matrix, compute_uv=False)[0] * scale
    assert exact <= norm_upper(matrix * scale) <= exact * (1 + 1e-8)


@pytest.mark.parametrize("depth", [5, 6, 12])
def test_a_curvature_that_overflows_is_infinite(depth):
    model = _scaled(_model(depth, "tanh"), 1e37)
    with np.errstate(all="ignore"):
        found = curvature_upper(model, _nothing_claimed(model))
    assert (np.isinf(found) | np.eye(model.classes, dtype=bool)).all()


def test_a_tight_cluster_does_not_hide_the_largest_eigenvalue():
    """Eigenvalues 1, ..., 1 and 1 + 1e-7, in a direction that no simple start vector sees."""
    n = 60
    v = np.zeros(n)
    v[0], v[1] = np.sqrt(0.5), -np.sqrt(0.5)
    matrix = np.eye(n) + (np.sqrt(1 + 1e-7) - 1) * np.outer(v, v)
    assert gram_upper(matrix) >= 1 + 1e-7
    assert gram_upper(matrix, claim=1 + 0.9e-7) > 1 + 0.9e-7
    assert gram_upper(matrix, claim=1 + 1.1e-7) == 1 + 1.1e-7


def test_norms_of_nothing():
    assert norm_upper(np.zeros((3, 4))) == 0
    assert norm_upper(np.array([[np.nan, 1.0]])) == np.inf


# Curvature


@pytest.mark.parametrize(
    ("depth", "name"), [*((3, name) for name in ACTIVATIONS), (2, "softplus"), (4, "tanh")]
)
def test_no_hessian_bends_more_than_the_curvature(depth, name):
    model = _model(depth, name, seed=depth)
    network = random_network(depth, name=name, seed=depth).double()
    m = curvature_upper(model, _nothing_claimed(model))
    points = 2 * torch.randn(400, 5, dtype=torch.float64)
    for y, t in [(0, 1), (1, 0), (2, 3)]:

        def margin(x, y=y, t=t):
            logits = network(x[None])[0]
            return logits[y] - logits[t]

        hessians = torch.func.vmap(torch.func.hessian(margin))(points).detach()
        assert -float(torch.linalg.eigvalsh(hessians)[:, 0].min()) <= m[y, t]
    assert np.isfinite(m).all() and (m.diagonal() == 0).all()


def test_a_claim_is_kept_where_it_can_be_proved_and_only_there():
    model = _model(2, "softplus")
    own = curvature_upper(model, _nothing_claimed(model))
    assert np.allclose(curvature_upper(model, own * (1 + 1e-7)), own * (1 + 1e-7), rtol=1e-12)
    assert np.allclose(curvature_upper(model, own * 0.98), own, rtol=1e-9)


def test_a_linear_network_has_no_curvature():
    model = _model(3, LINEAR)
    assert (curvature_upper(model, _nothing_claimed(model)) == 0).all()


# Convolutions


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [(3, 2, 1, 1), (4, 2, 1, 1), (5, 1, 2, 1), (1, 1, 0, 1), (2, 3, 0, 1), (3, 2, 1, 2)],
)
def test_an_unrolled_convolution_is_that_of_torch(kernel, stride, padding, groups):
    geometry = Geometry(
        image=(4, 7, 6),
        outputs=6,
        kernel=(kernel, 2),
        stride=(stride, 1),
        padding=(padding, 1),
        dilation=(1, 2),
        groups=groups,
    )
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 4 // groups, kernel, 2)), rng.normal(size=6)
    matrix, offset = unrolled(weight, bias, geometry)
    images = rng.normal(size=(5, 4, 7, 6))
    wanted = torch.nn.functional.conv2d(
        *(torch.from_numpy(a) for a in (images, weight, bias)),
        (stride, 1),
        (padding, 1),
        (1, 2),
        groups,
    )
    assert wanted.shape[1:] == geometry.made
    assert np.allclose(images.reshape(5, -1) @ matrix.T + offset, wanted.flatten(1).numpy())


def test_a_convolution_too_large_to_unroll_is_refused():
    geometry = Geometry(image=(3, 32, 32), outputs=64, kernel=(3, 3), padding=(1, 1))
    weight, bias = np.zeros((64, 3, 3, 3)), np.zeros(64)
    with pytest.raises(InvalidInput, match=r"at most 33554432 entries.*entries=201326592"):
        unrolled(weight, bias, geometry)


@pytest.mark.parametrize("model", [{"depth": 1}, {"width": 20}, {"channels": (3, 5), "width": 20}])
def test_the_curvature_of_convolutions_is_that_of_the_certifier(tmp_path, model):
    spec = ModelSpec(**{"channels": (4,), **model})
    torch.manual_seed(0)
    network = build(spec, (1, 6, 6), 4)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    checked = Model.load(tmp_path / "model.safetensors", spec, (1, 6, 6))
    ours, theirs = curvature_upper(checked, _nothing_claimed(checked)), margin_curvature(network)
    assert np.allclose(ours, theirs.numpy(), rtol=1e-6)


# Rounding


def _unrolled_model(depth: int, name: str) -> Model:
    """A convolution of 5 x 6 pixels before the last layers of a random network."""
    rng = np.random.default_rng(depth)
    kernel, bias = rng.normal(size=(4, 1, 3, 3)), rng.normal(size=4)
    geometry = Geometry(image=(1, 5, 6), outputs=4, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    matrix, offset = unrolled(kernel, bias, geometry)
    dense = _model(depth, name, features=len(matrix), seed=depth)
    first = replace(dense.hidden[0], active=len(matrix), width=len(matrix))
    return replace(
        dense,
        weights=(matrix, *dense.weights),
        biases=(offset, *dense.biases),
        hidden=(first, *dense.hidden),
    )


@pytest.mark.parametrize(
    ("depth", "name"),
    [*((3, name) for name in ("softplus", "tanh", "arctan", "silu")), (2, "tanh"), (4, "silu")],
)
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_rounding_stays_within_its_bound(depth, name, kind):
    """Against the same network in the long double of the machine, and in float32."""
    make = {"dense": partial(_model, features=30, width=40, seed=depth)}.get(kind, _unrolled_model)
    model = make(depth, name)
    x = np.random.default_rng(depth).normal(size=(200, 30)).astype(np.float32).astype(np.float64)
    label, target = np.zeros(200, int), np.ones(200, int)
    errors = Errors.of(model)
    length = np.linalg.norm(x, axis=1)

    def evaluate(kind):
        twin = replace(
            model,
            weights=tuple(w.astype(kind) for w in model.weights),
            biases=tuple(b.astype(kind) for b in model.biases),
        )
        logits, slopes = twin.forward(x.astype(kind))
        return logits[:, 0] - logits[:, 1], twin.margin_gradient(slopes, label, target)

    value, gradient = evaluate(np.float64)
    exact_value, exact_gradient = evaluate(np.longdouble)
    assert (np.abs(value - exact_value) <= errors.margin(length) + errors.offsets()[0, 1]).all()
    off = np.sqrt(((gradient - exact_gradient) ** 2).sum(1))
    assert (off <= errors.gradient(length)).all()
    single = evaluate(np.float32)[0]
    allowed = errors.margin(length, FLOAT32_UNIT) + errors.offsets(FLOAT32_UNIT)[0, 1]
    assert (np.abs(single - exact_value) <= allowed).all()
    assert FLOAT32_UNIT / UNIT == 2.0**29


@pytest.mark.parametrize(
    "network",
    [
        *(random_network(depth, features=40, width=200, classes=10) for depth in (2, 3, 5)),
        # Cotangents of norm 1e4 and more between isometries make loose bounds show.
        *(deepened(random_network(2, features=40, width=200, classes=10), k, 0.01) for k in (1, 2)),
        deepened(random_network(2, name="tanh", features=9, width=30), 1, 0.05),
    ],
    ids=["2", "3", "5", "2 behind 1", "2 behind 2", "tanh"],
)
def test_no_bound_takes_more_off_than_the_certifier_has_taken_off(network):
    """So that a radius that is stored is one that the checker proves."""
    length = torch.logspace(-3, 4, 8, dtype=torch.float64)
    certifier = RoundingErrors.of(network)
    bounds = ErrorTables.of(certifier, FirstLayerError.plain(network.features))
    checker = Errors.of(seen(network))
    assert (checker.margin(length.numpy()) < bounds.margin(length).numpy()).all()
    assert (checker.gradient(length.numpy()) < bounds.gradient(length).numpy()).all()
    deployed = certifier.margin(length, torch.float32)
    assert (checker.margin(length.numpy(), FLOAT32_UNIT) < deployed.numpy()).all()
    for unit, dtype in ((UNIT, torch.float64), (FLOAT32_UNIT, torch.float32)):
        assert (checker.offsets(unit) < certifier.offsets(dtype).numpy()).all()


@pytest.mark.parametrize("name", ["softplus", "tanh", "silu"])
@pytest.mark.parametrize("big", [1e3, 1e4, 1e5, 1e6])
def test_a_large_neuron_that_nothing_reads_keeps_no_radius_from_being_proved(big, name):
    """It makes bounds by norms large and gradients none: errors of these may cost their square."""
    network = random_network(2, features=2, width=2, classes=2, name=name)
    with torch.no_grad():
        network.maps[0].weight.copy_(torch.tensor([[big, 0.0], [0.0, 1.0]]))
        network.maps[0].bias.zero_()
        network.maps[1].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        network.maps[1].bias.copy_(torch.tensor([0.3, -0.3]))
    images = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    certifier = Certifier(network.requires_grad_(False))
    found = certifier(images)
    model, x = seen(network), images.double().numpy()
    assert (found.radius > 0).all()
    row, label, u = np.arange(4), found.prediction.numpy(), np.zeros((4, 2))
    u[found.witnesses.row.numpy()] = found.witnesses.point.double().numpy()
    logits, slopes = model.forward(x + u)
    proved = witness_radius(
        Errors.of(model),
        length=np.linalg.norm(x, axis=1),
        value=logits[row, label] - logits[row, 1 - label],
        gradient=model.margin_gradient(slopes, label, 1 - label),
        m=certifier.curvature.numpy()[label, 1 - label],
        u=u,
    )
    assert (proved >= found.radius.numpy()).all()


# Radii


def _radii(model: Model, x: np.ndarray, label: int, target: int, m: float, u=None, **options):
    """The radius that each row of `u` (k, features), or none, proves for the point x."""
    points = x[None] if u is None else x + u
    n = len(points)
    logits, slopes = model.forward(points)
    labels, targets = np.full(n, label), np.full(n, target)
    given = {
        "length": np.full(n, np.linalg.norm(x)),
        "value": logits[:, label] - logits[:, target],
        "gradient": model.margin_gradient(slopes, labels, targets),
        "m": np.full(n, m),
        **options,
    }
    if u is None:
        return floor(Errors.of(model), **given).radius()
    return witness_radius(Errors.of(model), u=u, **given)


def test_the_radius_of_a_linear_model_is_its_margin_over_its_slope():
    """And every witness proves the same."""
    model = _model(3, LINEAR)
    x = np.random.default_rng(1).normal(size=5)
    matrix = model.weights[2] @ model.weights[1] @ model.weights[0]
    logits = model.forward(x[None])[0][0]
    order = np.argsort(logits)
    y, t = order[-1], order[0]
    exact = (logits[y] - logits[t]) / np.linalg.norm(matrix[y] - matrix[t])
    u = np.random.default_rng(2).normal(size=(6, 5))
    for found in (_radii(model, x, y, t, 0.0), _radii(model, x, y, t, 0.0, u=u)):
        assert (found <= exact).all() and np.allclose(found, exact, rtol=1e-9)
    coarse = _radii(model, x, y, t, 0.0, deployed=FLOAT32_UNIT)
    assert (coarse < exact * (1 - 1e-7)).all() and np.allclose(coarse, exact, rtol=1e-3)


def _findings(model: Model, x: np.ndarray, share: float, deployment: str) -> list:
    """What is wrong with a row that states `share` of the radius of a linear model."""
    logits = model.forward(x[None])[0][0]
    y, t = np.argsort(-logits)[:2]
    unit = [np.abs(w).max() for w in model.weights]
    weights = [w / u for w, u in zip(model.weights, unit, strict=True)]
    slopes = np.linalg.multi_dot(weights[::-1])
    slopes = np.linalg.norm(slopes[y] - slopes, axis=1)
    values = x @ np.linalg.multi_dot(weights[::-1]).T
    radius = np.delete((values[y] - values) / np.where(slopes > 0, slopes, 1.0), y).min() * share
    row = {
        **dict.fromkeys(("index", "label"), np.zeros(1, int)),
        "prediction": np.array([y]),
        "binding": np.array([t]),
        "runner_up": np.array([t]),
        **dict.fromkeys(("radius", "radius_runner_up"), np.array([radius])),
        "curvature": np.zeros(1),
        "region_radius": np.full(1, np.inf),
        "status": np.array(["certified"]),
        **dict.fromkeys(("witness_row", "witness_class"), np.zeros(0, int)),
        "witness_point": np.zeros((0, len(x))),
        "witness_curvature": np.zeros(0),
        "enclosure_radius": np.zeros(1),
    }
    nothing = np.zeros((model.classes, model.classes))
    given = {"curvature": nothing, "stated": nothing, "deployment": deployment}
    inputs = InArrays.of("one row", x[None], np.zeros(1, int))
    checker = Checker(model, inputs=inputs, **given)
    return checker.check(Rows(**row))


@pytest.mark.parametrize("depth, scale", [(2, 1e-25), (2, 1e25), (3, 1e-15), (3, 1e15)])
def test_what_leaves_float32_is_proved_for_exact_arithmetic_only(depth, scale):
    model = _scaled(_model(depth, LINEAR), scale)
    x = np.random.default_rng(1).normal(size=5)
    assert not _findings(model, x, 0.5, "exact")
    assert not _findings(_scaled(model, 1 / scale), x, 0.5, "float32")
    assert _findings(model, x, 0.5, "float32")


@pytest.mark.parametrize("depth, scale", [(5, 1e-36), (8, 1e-40)])
def test_no_radius_is_proved_where_squares_or_gradients_underflow(depth, scale):
    model = _scaled(_model(depth, LINEAR), scale)
    x = np.random.default_rng(1).normal(size=5)
    assert _findings(model, x, 1e6, "exact")


def test_points_that_prove_nothing_have_radius_0():
    model = _model(2, "tanh")
    x = np.zeros(5)
    y = int(model.forward(x[None])[0].argmax())
    t = (y + 1) % 4
    m = float(curvature_upper(model, _nothing_claimed(model))[y, t])
    u = np.stack([np.full(5, 1e4), np.full(5, np.inf), np.full(5, np.nan)])
    with np.errstate(all="ignore"):
        assert (_radii(model, x, y, t, m, u=u) == 0).all()
        assert (_radii(model, x, t, y, m) == 0).all()
        assert (_radii(model, x, y, t, np.inf) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "name"), [*((2, name) for name in ACTIVATIONS), (3, "softplus"), (3, "silu")]
)
def test_no_point_of_a_fine_grid_contradicts_a_radius(depth, name):
    """In the plane every witness, good or hostile, is tried against a grid around the point."""
    model = _model(depth, name, features=2, width=8, classes=3, gain=3.0, seed=depth)
    m = curvature_upper(model, _nothing_claimed(model))
    rng = np.random.default_rng(depth)
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    positive = 0
    for x in rng.normal(size=(12, 2)):
        y = int(model.forward(x[None])[0].argmax())
        for t in set(range(3)) - {y}:
            u = np.concatenate(
                [rng.normal(size=(200, 2)) * size for size in (0.01, 0.1, 1.0)]
            ).astype(np.float16)
            best = float(_radii(model, x, y, t, m[y, t], u=u.astype(float)).max())
            best = max(best, float(_radii(model, x, y, t, m[y, t])[0]))
            positive += best > 0
            inside = np.linspace(0, best, 40)[:, None, None] * circle * (1 - 1e-12)
            logits = model.forward(x + inside.reshape(-1, 2))[0]
            assert (logits[:, y] > logits[:, t]).all()
    assert positive >= 20


# Independence


def test_nothing_is_shared_with_the_solver():
    """The checker imports no torch, and of raycrt the definitions only."""
    their_ranges = {name for name in vars(Activation) if "_range" in name or "_bound" in name}
    assert len(their_ranges) == 6
    allowed = {"activations", "errors", "specs", "data", "verify"}
    for file in Path(raycrt.verify.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Attribute):
                assert node.attr not in their_ranges, (file.name, node.attr)
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                module = str(node.module)
                names = [module] if module != "raycrt" else [f"raycrt.{a.name}" for a in node.names]
            for name in names:
                package, *rest = name.split(".")
                assert package not in {"torch", "ray"}, (file.name, name)
                if package == "raycrt":
                    assert rest and rest[0] in allowed, (file.name, name)


def test_the_activations_have_their_derivatives_in_numpy_too():
    z = np.linspace(-6, 6, 241)
    step = 1e-5
    for record in ACTIVATIONS.values():
        up, down = record.value(z + step, NUMPY), record.value(z - step, NUMPY)
        assert np.allclose((up - down) / (2 * step), record.slope(z, NUMPY), atol=1e-8)
