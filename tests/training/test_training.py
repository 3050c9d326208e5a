"""Objectives and the loop: bounds that the losses rest on, exact restarts, divergence named."""

import math
from dataclasses import replace

import pytest
import torch

from raycrt import Certifier, data
from raycrt.bounds.curvature import margin_curvature
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint
from raycrt.networks.floating_point import float32_is_plain
from raycrt.specs import AugmentationSpec, Spec, TrainSpec
from raycrt.specs.provenance import Training
from raycrt.training import attacks, loop, objectives
from raycrt.training.folding.isometries import deepened
from raycrt.training.folding.part import fresh
from raycrt.training.folding.subspace import Subspace
from raycrt.training.inputs import augmentation
from raycrt.training.objectives import OBJECTIVES
from raycrt.training.objectives.crt_all import CrtAll
from raycrt.training.objectives.ibp import interval_margins
from raycrt.training.options import effects
from raycrt.training.precision import View, products_in
from raycrt.training.regularizer import CurvatureEstimate
from tests.models import random_network
from tests.training.laws import FAST, TINY, ObjectiveLaws, same_weights


@pytest.mark.parametrize("objective", OBJECTIVES)
class TestEvery(ObjectiveLaws):
    pass


@pytest.mark.parametrize("name", ["softplus", "tanh", "gelu"])
@pytest.mark.parametrize("depth", [2, 3])
def test_interval_margins_lie_below_every_margin_in_the_ball(depth, name):
    network = random_network(depth, name=name).double()
    x, label = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 4
    radius = torch.tensor(0.3, dtype=torch.float64)
    lower = interval_margins(network, x, label, radius)
    assert torch.allclose(
        interval_margins(network, x, label, 0 * radius),
        network(x).gather(1, label[:, None]) - network(x),
    )
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        v = torch.nn.functional.normalize(
            torch.randn(20, 5, generator=generator, dtype=torch.float64), dim=1
        )
        logits = network(x + radius * v)
        assert (logits.gather(1, label[:, None]) - logits >= lower - 1e-12).all()


def test_gradient_ascent_raises_the_loss_inside_the_ball():
    network = random_network(3)
    x, label = torch.randn(30, 5), torch.arange(30) % 4
    radius = torch.tensor(0.4)
    u = attacks.gradient_ascent(View(network, "float32"), x, label, radius, 10)
    assert (u.norm(dim=1) <= 0.4 * (1 + 1e-6)).all()
    loss = torch.nn.functional.cross_entropy
    before, after = (loss(network(p), label, reduction="none") for p in (x, x + u))
    random = torch.nn.functional.normalize(torch.randn(30, 5), dim=1) * 0.4
    assert (after > before).all()
    assert after.mean() > loss(network(x + random), label)


def test_a_network_of_coordinates_folds_into_one_of_images():
    torch.manual_seed(0)
    images = torch.randn(40, 1, 2, 5, dtype=torch.float64) + 3
    subspace = Subspace(images, 6)
    assert torch.allclose(
        subspace.basis @ subspace.basis.T, torch.eye(6, dtype=torch.float64), atol=1e-12
    )
    assert torch.allclose(subspace(images).mean(0), torch.zeros(6).double(), atol=1e-12)
    inner = random_network(3, features=6).double()
    whole = subspace.fold(inner)
    assert whole.features == 10
    assert torch.allclose(whole(images), inner(subspace(images)), atol=1e-10)
    assert torch.allclose(margin_curvature(whole), margin_curvature(inner), rtol=1e-6)
    behind = subspace.before(inner)
    assert behind.depth == inner.depth
    assert torch.allclose(behind(images), inner(subspace(images)), atol=1e-10)
    back = subspace.unfold(whole)
    for a, b in zip(back.parameters(), inner.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    with pytest.raises(InvalidInput, match=r"train\.components <= pixels.*components=11"):
        Subspace(images, 11)


@pytest.mark.parametrize("name", ["softplus", "tanh", "sigmoid"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_deepened_network_has_nearly_the_same_logits_and_curvature(layers, name):
    network = random_network(2, width=24, name=name).double()
    deep = deepened(network, layers, 1e-3)
    assert deep.depth == 2 + layers and deep.features == network.features
    x = torch.randn(20, 5, dtype=torch.float64)
    assert torch.allclose(deep(x), network(x), atol=1e-3)
    before, after = margin_curvature(network), margin_curvature(deep)
    assert torch.allclose(before, after, atol=0.02 * float(before.max()))
    assert deepened(network, 0, 1e-3) is network
    with pytest.raises(InvalidInput, match=r"train\.linear_layers.*inputs=5, width=3"):
        deepened(random_network(2, width=3), 1, 1e-3)


# A second layer that reads the first one's neurons and the coordinates; logits read both layers.
PASSING: list[dict[str, object]] = [
    {"kind": "dense", "width": 8, "activation": "none"},
    {
        "kind": "stack",
        "parts": [[{"kind": "dense", "width": 6, "activation": "none"}], [{"kind": "identity"}]],
        "activation": "softplus",
    },
    {
        "kind": "stack",
        "parts": [
            [{"kind": "dense", "width": 7, "activation": "none"}],
            [{"kind": "selection", "sizes": [6, 8], "kept": [0]}],
        ],
        "activation": "softplus",
    },
]


def test_a_list_of_layers_is_trained_behind_its_projection(tmp_path):
    spec = TINY.override({"train.components": 8, "model": {"layers": PASSING}})
    split = data.load(spec.data).train
    network = loop.train(spec, split)
    checkpoint.save_model(tmp_path, network, spec, Training.of(spec))
    stored = checkpoint.load_model(tmp_path)[0]
    assert same_weights(network, stored) and stored.depth == 3
    projection, subspace = stored.maps[0], Subspace(split.images, 8)
    assert torch.equal(projection.matrix(), subspace.basis.to(stored.dtype))
    assert not same_weights(stored, fresh(spec))
    assert same_weights(network, loop.train(spec, split))


@pytest.mark.parametrize(
    ("layers", "components", "why"),
    [
        (PASSING, 9, r"must begin with the projection onto train\.components.*width: 9"),
        ([{"kind": "identity", "activation": "tanh"}], 64, r"must begin with.*identity"),
        ([{"kind": "dense", "width": 8}], 8, r"must begin with the projection"),
        ([{"kind": "dense", "width": 65, "activation": "none"}], 65, r"components <= pixels"),
    ],
)
def test_a_list_begins_with_the_projection_onto_its_components(layers, components, why):
    layers = [*layers, {"kind": "dense", "width": 5}]
    spec = TINY.override({"train.components": components, "model": {"layers": layers}})
    with pytest.raises(InvalidInput, match=why):
        loop.train(spec, data.load(spec.data).train)


def test_a_deepened_model_fits_its_spec(tmp_path):
    spec = TINY.override({**FAST, "model.depth": 4, "train.linear_layers": 2})
    split = data.load(spec.data).train
    network = loop.train(spec, split)
    checkpoint.save_model(tmp_path, network, spec, Training.of(spec))
    assert same_weights(network, checkpoint.load_model(tmp_path)[0])
    assert network.depth == 4
    with pytest.raises(InvalidInput, match=r"train\.linear_layers must leave at least 2"):
        loop.train(spec.override({"train.linear_layers": 3}), split)


def test_augmentation_is_a_function_of_its_seed_and_moves_no_row_by_another():
    images = torch.rand(6, 1, 8, 8)
    spec = AugmentationSpec(rotation=10, shift=1, scaling=0.1)
    maps = augmentation.random_maps(6, images.shape[1:], spec, 3)
    moved = augmentation.warp(images, maps)
    assert torch.equal(moved[1::2], augmentation.warp(images[1::2], maps[1::2]))
    assert not torch.equal(maps, augmentation.random_maps(6, images.shape[1:], spec, 4))
    assert (moved - images).abs().amax((1, 2, 3)).min() > 1e-3
    still = augmentation.random_maps(6, images.shape[1:], AugmentationSpec(), 3)
    assert torch.allclose(augmentation.warp(images, still), images, atol=1e-5)


def test_a_shift_of_one_pixel_is_one_pixel():
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    maps = torch.tensor([[[1.0, 0.0, 2 / 8], [0.0, 1.0, 0.0]]])
    assert augmentation.warp(image, maps)[0, 0, 4, 3] == pytest.approx(1)


def test_half_of_the_images_are_mirrored_and_nothing_else_changes():
    images = torch.rand(200, 1, 8, 8)
    maps = augmentation.random_maps(200, images.shape[1:], AugmentationSpec(mirror=True), 3)
    seen = augmentation.warp(images, maps)
    swapped = (seen - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    same = (seen - images).abs().amax((1, 2, 3)) < 1e-5
    assert (swapped ^ same).all()
    assert 70 < swapped.sum() < 130
    assert AugmentationSpec(mirror=True).moves


def test_rates_warm_up_and_fall_to_zero():
    spec = TrainSpec(warm_up=0.2)
    shares = [loop.rate_share(spec, done / 100) for done in range(101)]
    assert shares[0] == 0 and shares[20] == 1 and shares[100] == pytest.approx(0)
    assert shares[:21] == sorted(shares[:21]) and shares[20:] == sorted(shares[20:], reverse=True)
    assert loop.rate_share(TrainSpec(), 0.0) == 1


def test_low_precision_products_stay_near_and_keep_float32_weights(monkeypatch):
    monkeypatch.setattr("raycrt.training.precision.has_bfloat16", lambda device: True)
    network = random_network(3)
    view = View(network, "bfloat16")
    x = torch.randn(9, 5)
    exact, low = network(x), view(x)
    assert low.dtype == torch.float32
    assert not torch.equal(exact, low)
    assert torch.allclose(exact, low, atol=0.1 * float(exact.detach().abs().max()))
    low.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
    with torch.no_grad():
        network.layers[0].bias.add_(1.0)
    assert not torch.allclose(view.plain(x.bfloat16()).float(), network(x), atol=0.5)
    view.refresh()
    assert torch.allclose(view.plain(x.bfloat16()).float(), network(x), atol=0.5)


def test_a_processor_without_bfloat16_products_takes_float32_ones(monkeypatch):
    monkeypatch.setattr("raycrt.training.precision.has_bfloat16", lambda device: False)
    network = random_network(3)
    x = torch.randn(9, 5)
    assert torch.equal(View(network, "bfloat16")(x), network(x))


@pytest.mark.parametrize(
    ("precision", "inside"), [("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")]
)
def test_convolutions_too_round_factors_only_where_it_is_asked_for(precision, inside):
    """Torch lets cuDNN round them by default, or is told to."""
    for place in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
        before = place.fp32_precision
        place.fp32_precision = "tf32"
        try:
            with products_in(precision):
                assert place.fp32_precision == inside
            assert place.fp32_precision == "tf32"
        finally:
            place.fp32_precision = before


def test_tf32_is_for_the_steps_alone(monkeypatch):
    spec = TINY.override({"train.precision": "tf32", "train.epochs": 1})
    split = data.load(spec.data)
    plain = []
    take = CrtAll.losses
    monkeypatch.setattr(
        CrtAll,
        "losses",
        lambda self, *args: plain.append(float32_is_plain()) or take(self, *args),
    )
    reported = []
    network = loop.train(spec, split.train, report=lambda end: reported.append(float32_is_plain()))
    assert plain and not any(plain)
    assert reported == [True] and float32_is_plain()
    assert next(network.parameters()).dtype == torch.float32


def test_the_steps_before_a_target_s_own_are_shared():
    """With one target nothing is shared: the attack is the plain one of so many steps."""
    network = random_network(2, gain=1.0)
    x, labels, radius = torch.randn(30, 5), torch.randint(4, (30,)), torch.tensor(0.3)

    def lower(targets, steps):
        spec = TrainSpec(targets=targets, attack_steps=steps)
        objective = objectives.build(network, spec)
        for _ in range(20):
            objective.before_step()
        return objective.losses(x, labels, radius).loss

    assert torch.allclose(lower(1, 40), lower(1, 41), atol=1e-5)
    assert torch.allclose(lower(3, 40), lower(3, 41), atol=1e-4)
    assert (lower(3, 4) - lower(3, 40)).abs().max() < 0.02


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
    u = attacks.dual_attack(network, x, label, target, pair, radius, 400)
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


def by_products_of_norms(network, estimate):
    """The bound whose Jacobians are bounded by products of the layers' norms (classes, classes)."""
    total, before = torch.zeros(network.classes, network.classes).double(), 1.0
    for k, weights in enumerate(estimate._weights(network)):
        matrix = network.layers[k].matrix().detach()
        gram = torch.einsum("ni,abn,nj->abij", matrix, weights.detach(), matrix)
        total += torch.linalg.eigvalsh(gram)[..., -1] * before**2
        before *= float(torch.linalg.matrix_norm(matrix, 2)) * network.activation.slope_bound
    return total


@pytest.mark.parametrize("depth", [2, 3])
def test_the_curvature_estimate_approaches_a_valid_bound(depth):
    network = random_network(depth).double()
    estimate = CurvatureEstimate(network, pairwise=True)
    for _ in range(300):
        estimate.update(network)
    margins, proved = estimate.margins(network).detach(), margin_curvature(network)
    if depth == 2:
        assert torch.allclose(margins, proved, rtol=1e-4, atol=1e-6)
    else:
        products = by_products_of_norms(network, estimate)
        assert (margins <= products * (1 + 1e-4) + 1e-12).all()
        assert (margins < products * 0.99).any()
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
    assert same_weights(loop.train(TINY, split), loop.train(TINY, split))
    other = TINY.override({"run.seed": 1})
    assert not same_weights(loop.train(TINY, split), loop.train(other, split))


def test_fast_training_learns_a_network_of_all_pixels():
    split = data.load(TINY.data)
    metrics = []
    network = loop.train(
        TINY.override({**FAST, "train.epochs": 15}),
        split.train,
        report=lambda end: metrics.append(end.metrics),
    )
    assert network.features == 64
    assert next(network.parameters()).dtype == torch.float32
    right = network(split.validation.images).argmax(1) == split.validation.labels
    assert float(right.double().mean()) > 0.8
    assert metrics[0]["learning_rate"] == 0 and metrics[-1]["radius"] == 0.4
    assert all(m["curvature"] > 0 for m in metrics)


def test_divergence_names_the_step():
    spec = TINY.override({"train.learning_rate": 1e30})
    with pytest.raises(loop.TrainingDiverged, match=r"at step \d+ of epoch 1"):
        loop.train(spec, data.load(spec.data).train)


class _Spoilt(torch.nn.Module):
    """An objective whose loss is NaN in the call of number `at`."""

    def __init__(self, objective, at):
        super().__init__()
        self.objective, self.at, self.calls = objective, at, 0

    def forward(self, *inputs):
        losses = self.objective(*inputs)
        self.calls += 1
        return replace(losses, loss=losses.loss * math.nan) if self.calls == self.at else losses


def test_the_checkpoint_before_a_nan_is_kept_and_leads_to_the_same_weights(tmp_path):
    """300 rows in batches of 64 are 5 steps an epoch, so that call 13 is step 3 of epoch 3."""
    split = data.load(TINY.data).train

    def keep(end):
        checkpoint.save_state(tmp_path, end.state())
        checkpoint.save_model(tmp_path, end.network, TINY)

    spoil = loop.Workers(wrap=lambda objective: _Spoilt(objective, 13))
    with pytest.raises(loop.TrainingDiverged, match="it is nan at step 3 of epoch 3"):
        loop.train(TINY, split, report=keep, workers=spoil)
    kept, state = checkpoint.load_model(tmp_path)[0], checkpoint.load_state(tmp_path)
    assert state["epoch"] == 2 and kept.bounded()
    assert (Certifier(kept)(split.images[:50]).radius > 0).any()
    assert same_weights(loop.train(TINY, split), loop.train(TINY, split, state=state))


def test_weights_that_the_last_step_spoils_are_named():
    """The only step of the run: its loss is finite, its gradient is not."""
    spec = TINY.override({"train.epochs": 1, "train.batch_size": 300, "train.ramp": 0})

    def spoil(objective):
        objective.network.layers[0].bias.register_hook(lambda gradient: gradient * math.inf)
        return objective

    with pytest.raises(
        loop.TrainingDiverged, match=r"maps\.0\.bias is not after step 1 of epoch 1"
    ):
        loop.train(spec, data.load(spec.data).train, workers=loop.Workers(wrap=spoil))


@pytest.mark.parametrize("channels", [[], [4], [4, 6]])
def test_models_survive_the_disk(tmp_path, channels):
    kept = TINY.override({"model.channels": channels})
    network = loop.train(kept, data.load(kept.data).train)
    checkpoint.save_model(tmp_path, network, kept, Training.of(kept))
    loaded, spec = checkpoint.load_model(tmp_path)
    assert spec == kept and same_weights(network, loaded)
    images = data.load(kept.data).test.images
    assert torch.equal(network(images), loaded(images))
    assert checkpoint.weights_hash(network) == checkpoint.weights_hash(loaded)
    with torch.no_grad():
        loaded.layers[0].weight[0, 0] += 1e-6
    assert checkpoint.weights_hash(network) != checkpoint.weights_hash(loaded)
    assert not list(tmp_path.glob(".*partial"))


def test_a_model_that_does_not_fit_its_spec_is_refused(tmp_path):
    checkpoint.save_model(tmp_path, fresh(TINY), TINY.override({"model.width": 25}))
    with pytest.raises(InvalidInput, match=r"must fit its spec\.yaml"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(InvalidInput, match=r"must hold model\.safetensors"):
        checkpoint.load_model(tmp_path / "none")


@pytest.mark.slow
def test_robust_training_raises_certified_accuracy():
    spec = TINY.override({"train.epochs": 20, "data.limit": None, "model.width": 32})
    found = data.load(spec.data)

    def certified(objective: str) -> float:
        network = loop.train(effects.override(spec, {"train.objective": objective}), found.train)
        proved = Certifier(network)(found.validation.images)
        right = proved.prediction == found.validation.labels
        return float((right & (proved.radius > 0.6)).double().mean())

    assert certified("crt-all") > certified("standard") + 0.05


def test_default_spec_is_valid():
    assert Spec().train.objective in OBJECTIVES
