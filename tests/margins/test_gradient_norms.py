"""Lengths of gradients, bounded by few directions: never below the truth, whatever the spectrum."""

import pytest
import torch

from raycrt import Certifier
from raycrt.bounds.rounding import RoundingErrors, root_upper, squares
from raycrt.evaluation.attacks import attack
from raycrt.margins import evaluation
from raycrt.margins.first_layer import Directions
from raycrt.margins.gradient_norms import Leading, Pixels
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.affine import Dense
from raycrt.networks.network import margin_direction
from tests.models import random_network


def _layer(matrix):
    layer = Dense(matrix.shape[1], matrix.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(matrix)
    return layer.requires_grad_(False)


def _leading(layer, dtype):
    typical = torch.randn(3, layer.out_features, dtype=torch.float64)
    left, sizes, _ = torch.linalg.svd(layer.matrix(), full_matrices=False)
    return Leading.of(layer, left, sizes, typical, dtype, Tolerances())


def _spectrum(name, rows=60, columns=50):
    """A matrix with a planted spectrum: what few directions catch ranges from all to nothing."""
    torch.manual_seed(1)
    left = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64)).Q[:, :columns]
    right = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64)).Q
    sizes = {
        "flat": torch.ones(columns),
        "cluster": torch.cat([torch.ones(20), torch.full((columns - 20,), 1 - 1e-12)]),
        "decaying": 0.7 ** torch.arange(columns),
        "low rank": (torch.arange(columns) < 3).double(),
        "rank one and noise": torch.cat([torch.ones(1), torch.full((columns - 1,), 1e-6)]),
        "zero": torch.zeros(columns),
        "tiny": 1e-60 * torch.rand(columns),
    }[name].double()
    return (left * sizes) @ right.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["flat", "cluster", "decaying", "low rank", "rank one and noise", "zero", "tiny"]
)
def test_a_length_is_never_below_the_truth(name, dtype):
    matrix = _spectrum(name).to(dtype).double()
    layer = _layer(matrix)
    leading = _leading(layer, dtype)
    network = random_network(2, features=50, width=60)
    network.maps[0] = layer
    errors = RoundingErrors.of(network)
    directed = torch.linalg.svd(matrix).U.T.to(dtype)
    v = torch.cat(
        [torch.randn(200, 60, generator=torch.Generator().manual_seed(0)).to(dtype), directed]
    )
    truth = (v.double() @ matrix).norm(dim=1)
    for measure in (leading, Pixels(layer.to(dtype))):
        assert (measure.norm_upper(*measure(v), errors) >= truth).all()


def test_few_directions_bound_a_decaying_layer_tightly():
    matrix = _spectrum("decaying")
    errors = RoundingErrors.of(random_network(2, features=50, width=60).double())
    v = torch.randn(100, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leading = _leading(_layer(matrix), torch.float64)
    found = leading.norm_upper(*leading(v), errors)
    assert (found <= (v @ matrix).norm(dim=1) * 1.01).all()


def test_rows_keep_their_lengths_in_every_type():
    for dtype in (torch.float32, torch.float64):
        rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], dtype=dtype)
        found = root_upper(squares(rows), 2)
        assert (found >= rows.double().norm(dim=1)).all()
        assert float(found[0]) == pytest.approx(5, rel=1e-5)


def test_a_wide_first_layer_is_solved_in_pixels_with_the_same_radii(monkeypatch):
    """Coordinates change the way, not what is found."""
    network = random_network(2, features=20, width=30, gain=2.0)
    images = torch.randn(40, 20, generator=torch.Generator().manual_seed(3))
    certifier = Certifier(network)
    assert isinstance(certifier.batch.prepared.directions, Directions)
    directed = certifier(images)
    monkeypatch.setattr("raycrt.margins.first_layer.DENSE_ENTRIES", 100)
    certifier = Certifier(network)
    assert certifier.batch.prepared.directions is None
    assert isinstance(certifier.batch.prepared.measure, Pixels)
    found = certifier(images)
    assert torch.allclose(found.radius, directed.radius, rtol=1e-4)
    assert (found.radius <= attack(network, images).distance).all()


def test_a_flat_spectrum_costs_steps_and_no_radius():
    """Where few coordinates catch little of the gradient, the proved steps go on alone."""
    network = random_network(2, features=60, width=80, gain=1.0)
    images = torch.randn(30, 60, generator=torch.Generator().manual_seed(4))
    many = Certifier(network)(images)
    certifier = Certifier(network, tolerances=Tolerances(directions=2, missed=1.0))
    assert certifier.batch.prepared.directions.size == 2
    few = certifier(images)
    assert torch.allclose(few.radius, many.radius, rtol=1e-4)


def test_without_the_runner_up_the_radii_against_all_classes_stay(monkeypatch):
    network = random_network(2, classes=8, gain=1.5)
    images = torch.randn(100, 5, generator=torch.Generator().manual_seed(5))
    solved = []
    proved = evaluation.MarginEvaluator.prove

    def counted(self, rows, u):
        solved.append(len(rows))
        return proved(self, rows, u)

    monkeypatch.setattr(evaluation.MarginEvaluator, "prove", counted)
    both = Certifier(network)(images)
    with_it = sum(solved)
    solved.clear()
    alone = Certifier(network, runner_up=False)(images)
    assert sum(solved) < with_it
    assert torch.allclose(alone.radius, both.radius, rtol=1e-5)
    assert (alone.radius_runner_up <= both.radius_runner_up * (1 + 1e-9)).all()


def test_a_flat_spectrum_is_given_more_directions():
    """As optimisers that keep weights orthogonal leave it: 16 directions would bound nothing."""
    draw = torch.Generator().manual_seed(0)
    flat = random_network(2, features=120, width=150)
    with torch.no_grad():
        left, _, right = torch.linalg.svd(flat.maps[0].weight, full_matrices=False)
        flat.maps[0].weight.copy_(left @ right)
        steep = random_network(2, features=120, width=150)
        steep.maps[0].weight.copy_((left * 0.7 ** torch.arange(120)) @ right)
    images = torch.randn(30, 120, generator=draw)
    for network, few in ((flat, False), (steep, True)):
        certifier = Certifier(network)
        assert (certifier.batch.prepared.measure.columns.shape[1] <= 32) == few
        assert (certifier.batch.prepared.directions.size <= 64) == few
        closed = Certifier(network, steps=0)(images).radius
        exact = network.double().eval()
        trace = exact.trace(images.double())
        label = trace.logits.argmax(1)
        sizes = torch.stack(
            [
                exact.pull_back(
                    trace.slopes, margin_direction(label, torch.tensor(t), trace.logits)
                )
                for t in range(exact.classes)
            ],
            1,
        ).norm(dim=2)
        value = trace.logits.gather(1, label[:, None]) - trace.logits
        m = certifier.curvature[label]
        ideal = 2 * value / (sizes + (sizes**2 + 2 * m * value).sqrt())
        ideal[torch.arange(30), label] = torch.inf
        assert (closed <= ideal.min(1).values * (1 + 1e-9)).all()
        assert (closed >= ideal.min(1).values * 0.97).all()
