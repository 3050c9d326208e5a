"""Curvature as matrices: no margin bends more, and what they prove is the truth or below it."""

import math
from dataclasses import replace

import pytest
import torch

from raycrt import Certifier, attack
from raycrt.activations import activation
from raycrt.bounds.rounding import RoundingErrors
from raycrt.margins.proofs.curvature import NumberCurvature
from raycrt.margins.proofs.curvature_matrix import MatrixAtPoints
from raycrt.margins.proofs.proof import Measured, RadiusProof
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.affine import Dense
from raycrt.networks.network import Network
from tests.models import random_network

N = 200
SHARE = 1e-14


def _network(name="softplus", rank=6, features=16, width=40, gain=3.0, seed=0, noise=1e-8):
    """A network of two layers whose first acts in `rank` directions, but for a little."""
    network = random_network(2, features=features, width=width, name=name, gain=gain, seed=seed)
    left, right = torch.randn(width, rank), torch.randn(rank, features)
    layer = Dense(features, width)
    with torch.no_grad():
        layer.weight.copy_(left @ right * (gain / rank) + noise * torch.randn(width, features))
        layer.bias.copy_(network.maps[0].bias)
    network.maps[0] = layer
    return network.requires_grad_(False)


FEW = Tolerances(left_out=1e-3, matrix_directions=3)


def _certifier(network):
    return Certifier(network, tolerances=FEW)


def _bound(prepared, y, t):
    """The matrix in pixels, as it is stored."""
    matrices = prepared.curvature.matrices
    one = torch.zeros(1, prepared.space.size, dtype=torch.float64)
    matrix = matrices.at(torch.tensor([y]), torch.tensor([t]), one, one)
    pixels = prepared.space.basis.T @ matrices.found[y, t].directions
    return (pixels * matrix.sizes) @ pixels.T + matrix.rest * torch.eye(len(pixels)).double()


def _assert_no_hessian_bends_more(network, y, t):
    certifier = _certifier(network)
    bound = _bound(certifier.batch.prepared, y, t)
    exact = network.in_float64()

    def margin(x):
        logits = exact(x[None])[0]
        return logits[y] - logits[t]

    for x in 4 * torch.randn(20, network.features).double():
        hessian = torch.autograd.functional.hessian(margin, x)
        assert float(torch.linalg.eigvalsh(-hessian - bound)[-1]) <= 1e-13
    return float(torch.linalg.eigvalsh(bound)[-1]), float(certifier.curvature[y, t])


@pytest.mark.parametrize("noise", [0.0, 1e-8, 1e-6])
@pytest.mark.parametrize("name", ["softplus", "tanh", "gelu"])
def test_no_hessian_bends_more_than_the_matrix(name, noise):
    largest, m = _assert_no_hessian_bends_more(_network(name, noise=noise), 1, 2)
    assert largest == pytest.approx(m, rel=1e-5 if noise == 1e-6 else 2e-7)


@pytest.mark.parametrize("fault", ["values", "vectors", "few"])
def test_a_wrong_eigendecomposition_costs_tightness_and_not_truth(fault, monkeypatch):
    eigh = torch.linalg.eigh

    def wrong(matrix):
        values, vectors = eigh(matrix)
        if fault == "values":
            return values * 0.1, vectors
        if fault == "vectors":
            return values, vectors.roll(1, 1)
        return values, torch.cat([vectors[:, :-3], vectors[:, :3] * 0.5], 1)

    monkeypatch.setattr(torch.linalg, "eigh", wrong)
    largest, m = _assert_no_hessian_bends_more(_network(), 0, 3)
    assert largest >= m * (1 - 1e-9)


class _Margin:
    """f(u) = value + g.u - u^T P u / 2 with P = V diag(d) V^T + rest I, and its `distance`."""

    def __init__(self, seed, *, rest=0.2, features=7, steepness=1.5):
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randn(N, features, generator=draw).double()
        self.g = steepness * torch.nn.functional.normalize(rows, dim=1)
        self.v = torch.linalg.qr(torch.randn(features, 2, generator=draw).double())[0]
        self.d = torch.tensor([0.7, 2.5], dtype=torch.float64)
        self.rest = rest
        self.p = (self.v * self.d) @ self.v.T + rest * torch.eye(features).double()
        values, vectors = torch.linalg.eigh(self.p)
        across = (self.g @ vectors).square()
        # The best multiplier of the dual, which is concave in its inverse, looked for densely.
        above = torch.logspace(-9, 3, 1201, dtype=torch.float64).expand(N, -1)
        for _ in range(3):
            lam = values[-1] + above
            spent = (across[:, None] / (lam[..., None] - values)).sum(2)
            squares = (2 - spent) / lam
            best = above.gather(1, squares.argmax(1, keepdim=True))
            factor = (above[:, 1:2] / above[:, :1]) ** torch.linspace(-1, 1, 201).double()
            above = best * factor
        self.distance = squares.amax(1).clamp(min=0).sqrt()

    def value(self, u):
        return 1 + (self.g * u).sum(1) - (u @ self.p * u).sum(1) / 2

    def gradient(self, u):
        return self.g - u @ self.p

    def bending(self, gradient, u):
        return MatrixAtPoints(
            of_gradient=gradient @ self.v,
            of_point=u @ self.v,
            sizes=self.d.expand(N, 2),
            rest=torch.full((N,), self.rest).double(),
        )


def _radius(f, value, gradient, u, off_value=0.0, off_gradient=0.0, prover=None, length=0.0):
    prover = prover or RadiusProof(errors=RoundingErrors.of(random_network()))
    pair = torch.zeros(N, dtype=torch.int64)
    measured = Measured(
        label=pair,
        target=pair + 1,
        image_norm=torch.full_like(value, length),
        point_norm=torch.full_like(value, length),
        value=value,
        value_error=torch.full_like(value, off_value),
        gradient_error=torch.full_like(value, off_gradient),
        gg=gradient.square().sum(1),
        gu=(gradient * u).sum(1),
        uu=u.square().sum(1),
        share=SHARE,
    )
    return prover.by_matrix(measured, f.bending(gradient, u))


def _units(seed, features=7):
    rows = torch.randn(N, features, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows.double(), dim=1)


@pytest.mark.parametrize("rest", [0.0, 0.2])
@pytest.mark.parametrize("length", [0.0, 0.3, 1.0])
def test_points_prove_the_distance_of_a_quadratic_margin_and_no_more(rest, length):
    f = _Margin(0, rest=rest)
    u = length * _units(1)
    found = _radius(f, f.value(u), f.gradient(u), u)
    assert (found <= f.distance * (1 + 1e-12)).all()
    assert (found >= f.distance * (1 - 1e-5)).all()


@pytest.mark.parametrize("off", [1e-9, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("length", [0.0, 0.3, 1.0])
def test_gradients_and_values_that_are_off_prove_no_more_than_the_truth(off, length):
    f = _Margin(0)
    u = length * _units(1)
    step = torch.nn.functional.normalize(f.g, dim=1)
    for direction in (step, -step, f.v[:, 1].expand(N, -1), -f.v[:, 1].expand(N, -1), _units(2)):
        found = _radius(f, f.value(u), f.gradient(u) + off * direction, u, off_gradient=off)
        assert (found <= f.distance).all()
    found = _radius(f, f.value(u) + off, f.gradient(u), u, off_value=off)
    assert (found <= f.distance).all()


def test_a_deployment_takes_its_error_on_the_whole_ball_off():
    f, u = _Margin(0), torch.zeros(N, 7).double()
    errors = RoundingErrors.of(random_network())
    prover = RadiusProof(errors=errors, deployed=torch.float32)
    found = _radius(f, f.value(u), f.gradient(u), u, prover=prover, length=3.0)
    lost = errors.margin(3 + found, torch.float32) + errors.offsets(torch.float32)[0, 1]
    lowered = _radius(f, f.value(u) - lost, f.gradient(u), u)
    assert (found <= lowered * (1 + 5e-6)).all()
    assert (found >= lowered * (1 - 1e-4)).all()


@pytest.mark.parametrize("scale", [1e-170, 1e-90, 1e90, 1e170])
def test_numbers_out_of_range_prove_nothing_false(scale):
    f, u = _Margin(0), torch.zeros(N, 7).double()
    for value, gradient in ((scale, 1.0), (1.0, scale), (scale, scale)):
        found = _radius(f, value * f.value(u), gradient * f.gradient(u), u)
        assert torch.isfinite(found).all()
        # f >= value - gradient |d|, and it may fall as fast as that along g.
        assert (found <= value / (gradient * 1.5) * (1 + 1e-9)).all()


@pytest.mark.parametrize("seed", range(4))
def test_matrices_raise_radii_and_no_adversarial_image_lies_inside(seed, monkeypatch):
    network, images = _network(seed=seed), torch.rand(60, 16)
    certifier = _certifier(network)
    by_matrix = certifier(images).radius
    prepared = certifier.batch.prepared
    number = replace(prepared, curvature=NumberCurvature(proof=prepared.proof))
    targets = replace(certifier.batch.targets, prepared=number)
    certifier.batch = replace(certifier.batch, targets=targets)
    by_number = certifier(images).radius
    assert (by_matrix >= by_number * (1 - 5e-6)).all()
    assert seed == 2 or (by_matrix > by_number * (1 + 1e-4)).any()
    assert (by_matrix <= attack(network, images, steps=50).distance).all()


def _best_of_the_dual(network, images, found, m):
    """`max over eta < 1/m of min over u of |u|^2 / 2 + eta f`, minimised slowly."""
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999]).double()
    exact = network.in_float64()
    eye = torch.eye(exact.classes).double()
    cotangent = (eye[found.prediction] - eye[found.binding]).repeat(len(shares), 1)
    share = shares.repeat_interleave(len(images))
    eta, x = share / m.repeat(len(shares)), images.double().repeat(len(shares), 1)
    u = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(1000):
            gradient = exact.pull_back(exact.trace(x + u).slopes, cotangent)
            u = u - 0.4 * (u + eta[:, None] * gradient)
        margin = (exact(x + u) * cotangent).sum(1)
        left = (u + eta[:, None] * gradient).square().sum(1) / (1 - share)
        dual = u.square().sum(1) + 2 * eta * margin - left
    return dual.clamp(min=0).sqrt().reshape(len(shares), -1).amax(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank", "gain", "seed"),
    [
        *(("softplus", 6, 4.0, seed) for seed in range(3)),
        ("silu", 3, 10.0, 0),
        ("gelu", 2, 0.3, 1),
        ("tanh", 1, 2.0, 2),
        ("erf", 3, 3.0, 0),
    ],
)
def test_radii_are_the_best_of_the_dual_also_next_to_its_pole(name, rank, gain, seed):
    network = _network(name=name, rank=rank, gain=gain, seed=seed)
    images = 3 * torch.rand(30, 16)
    certifier = _certifier(network)
    found = certifier(images)
    m = certifier.curvature[found.prediction, found.binding]
    best = _best_of_the_dual(network, images, found, m)
    large = best > 1e-2
    assert (found.radius >= best * (1 - 1e-3))[large].all()


@pytest.mark.parametrize(
    ("name", "rank", "gain", "classes", "seed"),
    [("silu", 3, 10.0, 3, 0), ("silu", 3, 10.0, 2, 5), ("gelu", 2, 0.3, 2, 2)],
)
def test_steps_that_lead_too_far_are_taken_back(name, rank, gain, classes, seed):
    """Three neurons whose slopes turn round: from beyond the boundary the next step ends at the
    image again, and so on."""
    torch.manual_seed(seed)
    network = Network([Dense(16, 3), Dense(3, classes)], activation(name))
    with torch.no_grad():
        left, right = torch.randn(3, rank), torch.randn(rank, 16)
        network.maps[0].weight.copy_(left @ right * (gain / math.sqrt(16 * rank)))
        network.maps[0].bias.copy_(gain * torch.randn(3))
        network.maps[1].weight.mul_(3 * gain)
    images = torch.rand(60, 16) * (1 + 2 * (seed % 2))
    certifier = Certifier(network.requires_grad_(False))
    found = certifier(images)
    m = certifier.curvature[found.prediction, found.binding]
    best = _best_of_the_dual(network, images, found, m)
    large = best > 1e-2
    assert (found.radius >= best * (1 - 2e-3))[large].all()
