"""Objectives and the loop: bounds that the losses rest on, exact restarts, divergence named."""

import pytest
import torch

from raycrt import Certifier, checkpoint, data, objectives, training
from raycrt.curvature import margin_curvature
from raycrt.errors import InvalidInput
from raycrt.objectives import OBJECTIVES
from raycrt.regularizer import CurvatureEstimate
from raycrt.spec import Spec, validate
from tests.models import random_network

TINY = validate(
    {
        "model": {"width": 24},
        "train": {"epochs": 4, "batch_size": 64, "radius": 0.4, "learning_rate": 0.005},
        "data": {"limit": 300},
    }
)


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(objective):
    split = data.load(TINY.data)
    spec = TINY.override({"train.objective": objective, "train.epochs": 15, "train.gamma": 1e-3})
    losses = []
    network = training.train(
        spec, split.train, report=lambda end: losses.append(end.metrics["loss"])
    )
    accuracy = float(
        (network(split.validation.images).argmax(1) == split.validation.labels).double().mean()
    )
    assert accuracy > 0.6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_a_gradient_and_a_loss_for_each_row(objective):
    spec = TINY.override({"train.objective": objective, "train.gamma": 0.1}).train
    module = objectives.build(random_network(3), spec)
    images, labels = torch.randn(7, 5), torch.arange(7) % 4
    losses = module(images, labels, torch.tensor(0.3))
    assert losses.loss.shape == losses.correct.shape == losses.robust.shape == (7,)
    losses.loss.sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in module.network.parameters()
    )
    empty = module(images[:0], labels[:0], torch.tensor(0.3))
    assert float(empty.loss.sum()) == 0


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_dual_margin_lies_below_every_margin_in_the_ball(depth):
    """F_t of crt-all, at the stationary point, bounds the margin over the ball."""
    network = random_network(depth, gain=1.0).double()
    m = margin_curvature(network)
    x = torch.randn(20, 5, dtype=torch.float64)
    label = network(x).argmax(1)
    target = (label + 1) % 4
    radius = torch.tensor(0.5, dtype=torch.float64)
    pair = m[label, target]
    u = objectives.attack(network, x, label, target, pair, radius, 400)
    assert (u.norm(dim=1) <= radius * (1 + 1e-9)).all()

    def margin(points):
        logits = network(points)
        rows = torch.arange(len(logits))
        return logits[rows, label] - logits[rows, target]

    lower = margin(x + u) - pair / 2 * (radius**2 - u.square().sum(1))
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        v = torch.nn.functional.normalize(
            torch.randn(20, 5, generator=generator, dtype=torch.float64), dim=1
        )
        assert (margin(x + radius * v) >= lower - 1e-6).all()


@pytest.mark.parametrize("depth", [2, 3])
def test_the_curvature_estimate_approaches_a_valid_bound(depth):
    network = random_network(depth).double()
    estimate = CurvatureEstimate(network, pairwise=True)
    for _ in range(300):
        estimate.update(network)
    margins, proved = estimate.margins(network).detach(), margin_curvature(network)
    if depth == 2:
        assert torch.allclose(margins, proved, rtol=1e-4, atol=1e-6)
    assert (margins >= proved * (1 - 1e-4)).all()


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_theorem_4_lies_above_the_proved_curvature(depth):
    network = random_network(depth).double()
    estimate = CurvatureEstimate(network, pairwise=False)
    for _ in range(300):
        estimate.update(network)
    y, t = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    loose = estimate.bound(network, y, t)
    assert (loose * (1 + 1e-6) >= margin_curvature(network)[y, t]).all()


def test_the_same_seed_gives_the_same_weights():
    split = data.load(TINY.data).train
    assert _same(training.train(TINY, split), training.train(TINY, split))
    other = TINY.override({"run.seed": 1})
    assert not _same(training.train(TINY, split), training.train(other, split))


@pytest.mark.parametrize("averaging", [None, 0.9])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_restart_changes_no_bit(tmp_path, objective, averaging):
    spec = TINY.override({"train.objective": objective, "train.averaging": averaging})
    split = data.load(spec.data).train

    def keep(end):
        if end.epoch == 2:
            checkpoint.save_state(tmp_path, end.state())

    whole = training.train(spec, split, report=keep)
    resumed = training.train(spec, split, state=checkpoint.load_state(tmp_path))
    assert _same(whole, resumed)


def test_divergence_names_the_step():
    spec = TINY.override({"train.learning_rate": 1e30})
    with pytest.raises(training.TrainingDiverged, match=r"at step \d+ of epoch 1"):
        training.train(spec, data.load(spec.data).train)


def test_models_survive_the_disk(tmp_path):
    network = training.train(TINY, data.load(TINY.data).train)
    checkpoint.save_model(tmp_path, network, TINY)
    loaded, spec = checkpoint.load_model(tmp_path)
    assert spec == TINY and _same(network, loaded)
    assert checkpoint.weights_hash(network) == checkpoint.weights_hash(loaded)
    with torch.no_grad():
        loaded.layers[0].weight[0, 0] += 1e-6
    assert checkpoint.weights_hash(network) != checkpoint.weights_hash(loaded)
    assert not list(tmp_path.glob(".*partial"))


def test_a_model_that_does_not_fit_its_spec_is_refused(tmp_path):
    checkpoint.save_model(tmp_path, training.fresh(TINY), TINY.override({"model.width": 25}))
    with pytest.raises(InvalidInput, match=r"must fit its spec\.yaml"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(InvalidInput, match=r"must hold model\.safetensors"):
        checkpoint.load_model(tmp_path / "none")


def test_robust_training_raises_certified_accuracy():
    spec = TINY.override({"train.epochs": 40, "data.limit": None, "model.width": 64})
    found = data.load(spec.data)

    def certified(objective: str) -> float:
        network = training.train(spec.override({"train.objective": objective}), found.train)
        proved = Certifier(network)(found.validation.images)
        right = proved.prediction == found.validation.labels
        return float((right & (proved.radius > 0.6)).double().mean())

    assert certified("crt-all") > certified("standard") + 0.05


def test_default_spec_is_valid():
    assert Spec().train.objective in OBJECTIVES
