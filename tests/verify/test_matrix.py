"""Radii by the curvature matrix: they hold, they are the best of their kind, and faults cost them.

The best of its kind: the largest R with the quadratic lower bound positive on the ball of radius R.
"""

import math
import shutil
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from raycrt import data
from raycrt.certification.table import storage
from raycrt.specs import Spec
from raycrt.verify import verify_run
from raycrt.verify.curvature import curvature_upper, neuron_curvature
from raycrt.verify.decomposition import Decomposition
from raycrt.verify.findings import Notes
from raycrt.verify.matrix import Matrices, Quadratic
from raycrt.verify.model import Model
from raycrt.verify.prover import Prover
from raycrt.verify.radius import FLOAT32_UNIT, Errors, witness_radius
from raycrt.verify.table import VERSIONS, read_rows
from tests.models import LINEAR, random_network
from tests.verify.runs import edit_manifest, manifest_of, rewrite_rows, rows_of, spec_of, write_run
from tests.verify.seen import seen


def _model(name="softplus", *, features=5, width=12, **options) -> Model:
    return seen(random_network(2, name=name, features=features, width=width, **options))


def _curvature(model: Model) -> np.ndarray:
    return curvature_upper(model, np.full((model.classes, model.classes), np.nan))


def _seen(model: Model, x: np.ndarray, u: np.ndarray, y: int, t: int) -> dict[str, np.ndarray]:
    """Value and gradient of the margin at x + u (k, features)."""
    logits, slopes = model.forward(x + u)
    label, target = np.full(len(u), y), np.full(len(u), t)
    return {
        "length": np.full(len(u), np.linalg.norm(x)),
        "value": logits[:, y] - logits[:, t],
        "gradient": model.margin_gradient(slopes, label, target),
        "u": u,
    }


def _scalar(model: Model, m: float, seen: dict[str, np.ndarray]) -> np.ndarray:
    return witness_radius(Errors.of(model), m=np.full(len(seen["u"]), m), **seen)


def _matrix(matrices: Matrices, y: int, t: int, seen: dict[str, np.ndarray], claim=None):
    """The radius that each point proves, at the claim given or near what it comes to."""
    k = len(seen["u"])
    if claim is not None:
        return matrices.radius(y, t, claim=np.broadcast_to(claim, k), **seen)
    found = np.ones(k)
    for _ in range(2):
        found = matrices.radius(y, t, claim=np.where(found > 0, found, 1.0), **seen)
    return found


def _best(model: Model, y: int, t: int, seen: dict[str, np.ndarray], i: int, angles=20_001):
    """In the plane: the distance of the nearest zero of the quadratic bound at point i."""
    angle = np.linspace(0, 2 * np.pi, angles)
    ray = np.stack([np.cos(angle), np.sin(angle)], 1)
    u, g, v = seen["u"][i], seen["gradient"][i], seen["value"][i]
    weight = model.weights[0]
    p = neuron_curvature(model, y, t)
    bent = (weight.T * p) @ weight
    # q(r ray) = constant + slope r - curved r^2 / 2, and its smallest zero r > 0.
    constant = v - g @ u - u @ bent @ u / 2
    slope, curved = ray @ (g + bent @ u), np.einsum("ad,de,ae->a", ray, bent, ray)
    root = np.sqrt(np.maximum(slope**2 + 2 * curved * constant, 0.0))
    with np.errstate(divide="ignore"):
        return (2 * constant / (root - slope)).min() if constant > 0 else 0.0


def _points(rng, x, y, t, model, m, count=4):
    """x itself, random points, and points near the nearest zero of the quadratic bound."""
    u = np.concatenate([np.zeros((1, len(x))), rng.normal(size=(count, len(x))) * 0.3])
    seen = _seen(model, x, u[:1], y, t)
    for _ in range(6):
        step = -seen["gradient"][0] - m * seen["u"][0]
        radius = float(np.clip(_scalar(model, m, seen)[0], 1e-3, 1e3))
        near = (radius * step / max(np.linalg.norm(step), 1e-300)).astype(np.float16).astype(float)
        seen = _seen(model, x, near[None], y, t)
        u = np.concatenate([u, near[None]])
    return u


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softplus", "arctan", "gelu", "silu"])
def test_radii_hold_and_are_no_smaller_than_those_by_a_number(name):
    """No point of the ball that sampling or descent finds has the margin negative."""
    model = _model(name, gain=3.0)
    curvature = _curvature(model)
    matrices = Matrices(model, Errors.of(model), curvature)
    rng = np.random.default_rng(0)
    gained = 0
    for x in rng.normal(size=(8, 5)):
        order = np.argsort(-model.forward(x[None])[0][0])
        y = int(order[0])
        for t in map(int, order[1:3]):
            u = _points(rng, x, y, t, model, curvature[y, t])
            seen = _seen(model, x, u, y, t)
            scalar, matrix = _scalar(model, curvature[y, t], seen), _matrix(matrices, y, t, seen)
            assert (matrix >= scalar * (1 - 1e-9)).all()
            gained += (matrix > scalar * 1.001).sum()
            radius = matrix.max()
            assert radius > 0
            d = rng.normal(size=(400, 5))
            for _ in range(30):
                d *= radius * (1 - 1e-12) / np.linalg.norm(d, axis=1, keepdims=True)
                at = _seen(model, x, d, y, t)
                assert (at["value"] > 0).all()
                inside = d * rng.uniform(size=(400, 1))
                assert (_seen(model, x, inside, y, t)["value"] > 0).all()
                down = at["gradient"] / np.linalg.norm(at["gradient"], axis=1, keepdims=True)
                d = d - 0.3 * radius * down
    assert gained > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"),
    [("tanh", 3), ("gelu", 3), (LINEAR, 3), ("softplus", 1), ("silu", 12)],
)
def test_radii_are_the_best_of_their_kind(name, width):
    """Also where fewer neurons than features bend: P has a null space, or is zero."""
    model = _model(name, features=2, width=width, classes=3, gain=3.0)
    curvature = _curvature(model)
    matrices = Matrices(model, Errors.of(model), curvature)
    rng = np.random.default_rng(1)
    for x in rng.normal(size=(6, 2)):
        order = np.argsort(-model.forward(x[None])[0][0])
        y = int(order[0])
        for t in map(int, order[1:]):
            seen = _seen(model, x, _points(rng, x, y, t, model, curvature[y, t]), y, t)
            found = _matrix(matrices, y, t, seen)
            for i, radius in enumerate(found):
                best = _best(model, y, t, seen, i)
                assert radius <= best
                # Where the margin has next to no gradient, rounding is all there is.
                assert radius >= best * (1 - 2e-7) - 1e-8 or best > 1e3


@pytest.mark.parametrize("tilt", [0.0, 1e-12, 1e-9, 1e-6, 1e-3])
def test_the_best_where_two_ends_are_equally_near(tilt):
    """q falls most across its gradient: the best c is at the end of what is allowed."""
    weight = np.array([[1.0, 0.0], [0.0, 0.1]])
    p, m = np.array([2.0, 1.0]), 2.0 * (1 + 1e-14)
    value, gradient = np.array([0.7]), np.array([[tilt, 0.3]])
    # Along the first axis alone q would reach 0 at sqrt(0.7); a little of the second helps.
    angle = np.linspace(0, 2 * np.pi, 400_001)
    ray = np.stack([np.cos(angle), np.sin(angle)], 1)
    slope, curved = ray @ gradient[0], ray**2 @ (p * weight.diagonal() ** 2)
    best = (2 * 0.7 / (np.sqrt(slope**2 + 2 * curved * 0.7) - slope)).min()
    for gradient_error in (1e-16, 1e-12, 1e-9, 1e-6):
        given = {"value": value, "gradient_error": np.array([gradient_error]), "gradient": gradient}
        given["u"] = np.zeros((1, 2))
        b, c, s = Decomposition.of(weight, p).propose(m=m, claim=np.array([best]), **given)
        quadratic = Quadratic.of(weight, p, m)
        found = quadratic.radius(moved=np.zeros(1), inflation=b, pull=c, step=s, **given)[0]
        # The gradient's error costs about `gradient_error` at most times a few.
        assert best * (1 - 1e-10 - 3 * gradient_error) <= found <= best


def _exact(
    quadratic: Quadratic, value, gradient_error, gradient, u, inflation, pull, step
) -> Fraction:
    """R^2 of the theorem in rational numbers, for one point u (features,) of these."""
    v, h, b, c = (Fraction(float(a)) for a in (value, gradient_error, inflation, pull))
    g, s = ([Fraction(float(a)) for a in row] for row in (gradient, step))
    weight = [[Fraction(float(a)) for a in row] for row in quadratic.weight]
    p = [Fraction(float(a)) for a in quadratic.p]
    hidden = [sum(a * e for a, e in zip(row, s, strict=True)) for row in weight]
    bent = [
        sum(q * t * row[j] for q, t, row in zip(p, hidden, weight, strict=True))
        for j in range(len(s))
    ]
    d = [a + e for a, e in zip(u, s, strict=True)]
    low = v - h * h / (2 * b) + sum(a * e for a, e in zip(g, s, strict=True))
    low -= sum(e * (z + b * e) for e, z in zip(s, bent, strict=True)) / 2
    rest = [a - z - b * e + c * n for a, z, e, n in zip(g, bent, s, d, strict=True)]
    spare = c - b - Fraction(quadratic.m)
    return sum(n * n for n in d) + (2 * low - sum(r * r for r in rest) / spare) / c


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-60])
@pytest.mark.parametrize("proposed", [True, False])
def test_rounding_is_on_the_safe_side_of_rational_numbers(scale, proposed):
    """With the numbers proposed, and with any others, near the pole or far away."""
    rng = np.random.default_rng(3)
    losses = []
    for _ in range(30):
        width, features, k = int(rng.integers(1, 6)), int(rng.integers(1, 5)), 8
        weight = rng.normal(size=(width, features)) * 10 ** rng.uniform(-3, 3)
        p = np.maximum(rng.normal(size=width), 0) * scale
        # The largest eigenvalue is right to 1e-15.
        m = float(np.linalg.eigvalsh((weight.T * p) @ weight)[-1]) * (1 + 1e-12)
        quadratic = Quadratic.of(weight, p, max(m, 0.0))
        reach = 10 ** rng.uniform(-3, 3)
        given = {
            "gradient": rng.normal(size=(k, features)) * max(m, scale) * reach,
            "u": rng.normal(size=(k, features)) * reach * 10 ** rng.uniform(-6, 0),
        }
        given["value"] = np.abs(given["gradient"] @ np.ones(features)) * reach
        given["gradient_error"] = 1e-9 * np.linalg.norm(given["gradient"], axis=1)
        inflation, pull, step = Decomposition.of(weight, p).propose(
            m=quadratic.m, claim=np.full(k, reach), **given
        )
        if not proposed:
            inflation = inflation * 10 ** rng.uniform(-3, 6, size=k)
            pull = (quadratic.m + inflation) * (1 + 10 ** rng.uniform(-15, 2, size=k))
            step = step * (1 + rng.normal(size=step.shape) * 10 ** rng.uniform(-16, 0, (k, 1)))
        numbers = {"inflation": inflation, "pull": pull, "step": step}
        moved = np.where(np.arange(k) % 2 == 0, 0.0, 1e-5 * reach)
        with np.errstate(all="ignore"):
            found = quadratic.radius(moved=moved, **given, **numbers)
        for i in np.nonzero(found)[0]:
            own = {key: a[i] for key, a in {**given, **numbers}.items()}
            for e in (-own["u"] - own["step"], *rng.normal(size=(2, features))):
                # The point is not known, the step from it is.
                u = [Fraction(float(a)) for a in own["u"]]
                e = e / np.linalg.norm(e) * moved[i] * (1 - 1e-9)
                there = {**own, "u": [a + Fraction(float(z)) for a, z in zip(u, e, strict=True)]}
                exact = _exact(quadratic, **there)
                assert Fraction(float(found[i])) ** 2 <= exact
            if proposed and moved[i] == 0:
                losses.append(1 - float(found[i]) / math.sqrt(exact))
    assert not proposed or (len(losses) > 100 and np.median(losses) < 1e-12)


def _garbage(name):
    rng = np.random.default_rng(4)

    def eigh(matrix):
        n = len(matrix)
        values, vectors = np.linalg.eigvalsh(matrix), rng.normal(size=(n, n))
        return {
            "random": (np.abs(rng.normal(size=n)), vectors),
            "nan": (values * np.nan, vectors * np.nan),
            "infinite": (values + np.inf, vectors),
            "vectors": (values, np.linalg.qr(vectors)[0]),
            "small": (values / 1e3, np.linalg.qr(vectors)[0]),
            "large": (values * 1e3, vectors),
            "zero": (values * 0, vectors * 0),
            "negative": (-values, vectors),
        }[name]

    return eigh


KINDS = ["random", "nan", "infinite", "vectors", "small", "large", "zero", "negative"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_decomposition_proves_nothing_that_is_not_so(monkeypatch, kind):
    model = _model("silu", gain=3.0)
    curvature, rng = _curvature(model), np.random.default_rng(5)
    honest = Matrices(model, Errors.of(model), curvature)
    fooled = Matrices(model, Errors.of(model), curvature)
    lost = 0
    for x in rng.normal(size=(6, 5)):
        y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
        seen = _seen(model, x, _points(rng, x, y, t, model, curvature[y, t]), y, t)
        true = _matrix(honest, y, t, seen)
        with monkeypatch.context() as patch:
            patch.setattr("raycrt.verify.decomposition.np.linalg.eigh", _garbage(kind))
            found = _matrix(fooled, y, t, seen, claim=np.where(true > 0, true, 1.0))
        assert (found <= true * (1 + 1e-9)).all()
        lost += (found < true * (1 - 1e-6)).sum()
    assert lost > 0


def test_any_other_numbers_prove_no_more():
    model = _model("tanh", gain=3.0)
    curvature, rng = _curvature(model), np.random.default_rng(6)
    matrices = Matrices(model, Errors.of(model), curvature)
    x = rng.normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, _points(rng, x, y, t, model, curvature[y, t]), y, t)
    true = _matrix(matrices, y, t, seen)
    quadratic, decomposition = matrices._kept[y, t]
    given = {
        "value": seen["value"],
        "gradient_error": np.full(len(true), 1e-3),
        "gradient": seen["gradient"],
    }
    given["u"] = seen["u"]
    inflation, pull, step = decomposition.propose(
        m=curvature[y, t], claim=np.where(true > 0, true, 1.0), **given
    )
    for _ in range(300):
        far = rng.normal(size=step.shape) * 10 ** rng.uniform(-9, 1)
        b = inflation * 10 ** rng.uniform(-8, 8, size=inflation.shape)
        c = pull * 10 ** rng.uniform(-1, 1, size=inflation.shape) * rng.choice([-1, 1, 1, 1])
        b = b * rng.choice([-1, 1, 1, 1])
        found = quadratic.radius(moved=0 * inflation, inflation=b, pull=c, step=step + far, **given)
        assert (found <= true * (1 + 1e-8)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["length", "value", "gradient", "u", "claim", "curvature"])
def test_what_is_not_finite_proves_nothing(bad, where):
    model = _model()
    curvature = _curvature(model)
    x = np.random.default_rng(7).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, np.zeros((2, 5)), y, t)
    claim = _matrix(Matrices(model, Errors.of(model), curvature), y, t, seen)
    assert (claim > 0).all()
    if where == "curvature":
        curvature[y, t] = bad
    elif where == "claim":
        claim[0] = bad
    else:
        seen[where][0] = bad
    found = _matrix(Matrices(model, Errors.of(model), curvature), y, t, seen, claim)
    assert found[0] == 0
    assert (found[1] > 0) == (where != "curvature")


def test_a_claim_of_nothing_or_less_proves_nothing():
    model = _model()
    x = np.random.default_rng(7).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, np.full((2, 5), 0.5), y, t)
    matrices = Matrices(model, Errors.of(model), _curvature(model))
    assert (_matrix(matrices, y, t, seen, 1.0) > 0).all()
    assert (_matrix(matrices, y, t, seen, np.array([0.0, -1.0])) == 0).all()
    # And the margin the other way round is negative.
    assert (_matrix(matrices, t, y, _seen(model, x, np.zeros((2, 5)), t, y), 0.1) == 0).all()


def test_the_rounding_of_the_point_itself_is_taken_off(monkeypatch):
    """x0 + u is rounded by 1e-16 of its length, which is all that differs here."""
    model = _model()
    errors = Errors.of(model)
    monkeypatch.setattr(Errors, "margin", lambda self, length, *_: 0 * length)
    monkeypatch.setattr(Errors, "gradient", lambda self, length: 0 * length + 1e-14)
    x = np.random.default_rng(9).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, np.full((1, 5), 0.01), y, t)
    matrices = Matrices(model, errors, _curvature(model))
    near = _matrix(matrices, y, t, seen, 0.1)
    far = _matrix(matrices, y, t, {**seen, "length": np.array([1e12])}, 0.1)
    assert 0 < far < near - 1e12 * 2.0**-53


def _two_points(model):
    """An image, two steps from it, its two largest classes, and what the matrix proves of both."""
    x = np.random.default_rng(8).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    u = np.array([[0.0] * 5, [0.1] * 5])
    true = _matrix(
        Matrices(model, Errors.of(model), _curvature(model)), y, t, _seen(model, x, u, y, t)
    )
    return x, u, y, t, true


@pytest.mark.parametrize(
    "scale", [1e-160, 1e-99, 1e-75, 1e-40, 1e-20, 1e20, 1e40, 1e75, 1e99, 1e150]
)
@pytest.mark.parametrize("name", ["softplus", LINEAR])
def test_no_scale_of_the_logits_makes_a_radius_larger(scale, name):
    """A margin times a number has the same zeros. Extreme numbers may prove less."""
    model = _model(name)
    first, last = model.weights
    scaled = replace(
        model,
        weights=(first, last * scale),
        biases=(model.biases[0], model.biases[1] * scale),
    )
    x, u, y, t, true = _two_points(model)
    with np.errstate(all="ignore"):
        matrices = Matrices(scaled, Errors.of(scaled), _curvature(scaled))
        found = _matrix(matrices, y, t, _seen(scaled, x, u, y, t), true)
    assert (true > 0).all() and (found <= true * (1 + 1e-8)).all()
    if 1e-30 < scale < 1e60:
        assert np.allclose(found, true, rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-160, 1e-75, 1e-40, 1e-15, 1e15, 1e40, 1e75, 1e150])
def test_no_scale_of_the_images_makes_a_radius_larger(scale):
    model = _model("softplus")
    scaled = replace(model, weights=(model.weights[0] / scale, model.weights[1]))
    x, u, y, t, true = _two_points(model)
    with np.errstate(all="ignore"):
        matrices = Matrices(scaled, Errors.of(scaled), _curvature(scaled))
        seen = _seen(scaled, x * scale, u * scale, y, t)
        found = _matrix(matrices, y, t, seen, true * scale) / scale
    assert (true > 0).all() and (found <= true * (1 + 1e-8)).all()
    if 1e-20 < scale < 1e20:
        assert np.allclose(found, true, rtol=1e-8)


def test_a_float32_deployment_takes_more_off():
    """At the radius claimed: its rounding is larger than float64's and grows with the radius."""
    model = _model()
    curvature, errors = _curvature(model), Errors.of(model)
    x = np.random.default_rng(9).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, np.zeros((1, 5)), y, t)
    exact = Matrices(model, errors, curvature)
    coarse = Matrices(model, errors, curvature, FLOAT32_UNIT)
    radius = _matrix(exact, y, t, seen)
    for claim in (radius, 100 * radius):
        gradient_error = errors.margin(seen["length"] + claim, FLOAT32_UNIT)
        lower = _matrix(exact, y, t, {**seen, "value": seen["value"] - gradient_error}, claim)
        found = _matrix(coarse, y, t, seen, claim)
        assert 0 < found < radius * (1 - 1e-7)
        assert np.allclose(found, lower, rtol=1e-8)


def test_decompositions_are_made_once_and_given_up_when_too_many(monkeypatch):
    model = _model()
    matrices = Matrices(model, Errors.of(model), _curvature(model))
    x = np.random.default_rng(9).normal(size=5)
    y, t = map(int, np.argsort(-model.forward(x[None])[0][0])[:2])
    seen = _seen(model, x, np.zeros((1, 5)), y, t)
    first = _matrix(matrices, y, t, seen, 0.1)
    kept = matrices._kept[y, t]
    assert _matrix(matrices, y, t, seen, 0.1) == first and matrices._kept[y, t] is kept
    monkeypatch.setattr("raycrt.verify.matrix._KEPT", 1)
    _matrix(matrices, t, y, seen, 0.1)
    assert list(matrices._kept) == [(t, y)]


# Rows


HONEST = {
    "dense": {},
    "convolutional": {"model": {"channels": [6], "depth": 1, "width": 1024}},
    "local": {"region": "local", "at": (0.1, 0.5, 1.0)},
    "float32": {"deployment": "float32"},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The honest run of a kind, written once."""

    @cache
    def write(kind):
        run = tmp_path_factory.mktemp("honest") / "run"
        return write_run(run, spec_of(name="silu", rows=20, **HONEST[kind]), gain=4.0)

    return write


@pytest.fixture(params=HONEST)
def honest(written, request):
    return written(request.param)


def _reached(run: Path) -> np.ndarray:
    """The radii that the checker proves of the rows' points, (n, classes)."""
    spec, manifest = Spec.load(run / "train"), manifest_of(run)
    model = Model.load(run / "train" / "model.safetensors", spec.model, data.shape(spec.data))
    stated = np.array(manifest["margin_curvature"])
    deployed = FLOAT32_UNIT if manifest["deployment"] == "float32" else None
    prover = Prover(model, curvature=stated, stated=stated, deployed=deployed)
    images = data.load(spec.data).test.images.numpy().reshape(-1, model.features)
    found = []
    for file in sorted((run / "certificates" / "rows").iterdir()):
        version = manifest["schema_version"]
        for rows in read_rows(file, model.features, model.classes, 1000, version=version):
            claims = np.repeat(rows.radius[:, None] * 1.2, model.classes, axis=1)
            # Errors are those at the radius that is claimed: again, near what is proved.
            x = images[rows.index].astype(np.float64)
            for _ in range(4):
                radii = prover.radii(
                    rows,
                    x,
                    passed=model.forward(x),
                    prediction=rows.prediction,
                    claims=claims,
                    certified=rows.status == "certified",
                    notes=Notes(rows.index),
                )
                claims = radii * (1 + 1e-7)
            radii[np.arange(len(rows)), rows.prediction] = np.inf
            found.append(radii)
    return np.concatenate(found)


def _raised(run: Path, proved: np.ndarray, factor: float) -> list[dict]:
    rows = rows_of(run).to_pylist()
    for row, radii in zip(rows, proved, strict=True):
        if row["status"] == "certified":
            row["radius"] = float(radii.min()) * factor
            row["radius_runner_up"] = float(radii[row["runner_up"]]) * factor
    return rows


def _short_witnesses(rows: list[dict]) -> list[dict]:
    """Witnesses on the way to where they should be: there the matrix proves more than a number."""
    return [
        {**row, "witness_points": [np.float16(0.7 * a) for a in row["witness_points"]]}
        for row in rows
    ]


@pytest.mark.parametrize(
    ("honest", "version"),
    [
        ("dense", storage.SCHEMA_VERSION),
        *(
            pytest.param(kind, storage.SCHEMA_VERSION, marks=pytest.mark.slow)
            for kind in HONEST
            if kind != "dense"
        ),
    ]
    + [
        pytest.param("dense", version, marks=pytest.mark.slow)
        for version in VERSIONS
        if version != storage.SCHEMA_VERSION
    ],
    indirect=["honest"],
)
def test_rows_are_proved_up_to_what_the_matrix_proves(honest, tmp_path, monkeypatch, version):
    run = shutil.copytree(honest, tmp_path / "run")
    edit_manifest(run, schema_version=version)
    rewrite_rows(run, _short_witnesses(rows_of(run).to_pylist()))
    with monkeypatch.context() as patch:
        patch.setattr(Matrices, "radius", lambda self, *_, value, **__: 0 * value)
        before = _raised(run, _reached(run), 1 - 1e-7)
    proved = _reached(run)
    certified = [row["status"] == "certified" for row in before]
    gains = [proved[row["index"]].min() / row["radius"] for row in before if row["radius"] > 0]
    assert sum(certified) >= 10 and np.median(gains) > 1.001
    accepted = _raised(run, proved, 1 - 1e-7)
    rewrite_rows(run, accepted)
    report = verify_run(run)
    assert report.sound, report.findings[:3]
    refused = _raised(run, proved, 1 + 1e-6)
    for name in ("radius", "radius_runner_up"):
        pairs = zip(accepted, refused, strict=True)
        rewrite_rows(run, [{**row, name: beyond[name]} for row, beyond in pairs])
        assert verify_run(run).failed == sum(certified)


def test_the_version_that_is_written_is_read():
    assert storage.SCHEMA_VERSION in VERSIONS


@pytest.mark.parametrize(
    ("honest", "version"),
    [("dense", version) for version in (2, 9, "4", None)],
    indirect=["honest"],
)
def test_other_versions_are_named_with_those_that_are_read(honest, tmp_path, version):
    run = shutil.copytree(honest, tmp_path / "run")
    edit_manifest(run, schema_version=version)
    sentences = [finding.sentence for finding in verify_run(run).findings]
    assert sentences == ["schema_version must be 3 or 4 or 5 or 6 or 7 or 8 in the manifest."]


def test_rows_that_a_number_proves_pay_nothing(honest, tmp_path, monkeypatch):
    run = shutil.copytree(honest, tmp_path / "run")
    shorter = [
        {**row, **{name: 0.4 * row[name] for name in ("radius", "radius_runner_up")}}
        for row in rows_of(run).to_pylist()
    ]
    rewrite_rows(run, shorter)
    monkeypatch.setattr("raycrt.verify.matrix.Matrices.radius", None)
    assert verify_run(run).sound


def test_a_decomposition_that_does_not_converge_proves_no_more(honest, tmp_path, monkeypatch):
    run = shutil.copytree(honest, tmp_path / "run")

    def diverge(gram):
        raise np.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "eigh", diverge)
    rows = rows_of(run).to_pylist()
    rewrite_rows(run, [{**row, "radius": row["radius"] * 1.2} for row in rows])
    report = verify_run(run)
    assert report.failed == sum(row["status"] == "certified" for row in rows)


def test_deeper_networks_are_left_alone(tmp_path):
    run = write_run(tmp_path, spec_of(3, rows=20))
    rows = rows_of(run).to_pylist()
    rows[7]["radius"] *= 1.0001
    rewrite_rows(run, rows)
    assert verify_run(run).failed == 1
