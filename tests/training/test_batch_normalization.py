"""Batch normalisation in recipes: its statistics are those of the data, and all is proved."""

import copy

import pytest
import torch

from raycrt import data
from raycrt.networks.layers.diagonal import Normalization
from raycrt.specs import validate
from raycrt.training import loop
from raycrt.training.batch_normalization import update_statistics
from raycrt.training.options import effects
from raycrt.verify import verify_run
from tests.models import mixed_network
from tests.verify.runs import write_run

LAYERS = [
    {"kind": "convolution", "channels": 4, "stride": 2, "padding": 1, "activation": "none"},
    {"kind": "batch_normalization", "activation": "silu"},
    {"kind": "flatten"},
    {"kind": "dense", "width": 12, "activation": "none"},
    {"kind": "batch_normalization", "activation": "tanh"},
]
SPEC = validate(
    {
        "model": {"layers": LAYERS},
        "train": {
            "objective": "crt-all",
            "radius": 0.1,
            "gamma": 0.0001,
            "epochs": 12,
            "batch_size": 64,
            "learning_rate": 0.02,
        },
        "data": {"limit": 300},
        "certify": {"steps": 20, "batch_size": 16, "at": [0.1]},
    }
)


def _normalizations(network):
    return [layer for layer in network.maps if isinstance(layer, Normalization)]


def test_one_step_takes_the_statistics_of_the_batch():
    network = mixed_network(LAYERS, shape=(1, 8, 8), classes=10).double()
    images = torch.rand(30, 1, 8, 8, dtype=torch.float64)
    update_statistics(network, images, 0, lambda sums: sums)
    z = images.flatten(1)
    for layer, after in zip(network.maps, network.between, strict=False):
        if isinstance(layer, Normalization):
            found = layer(z).reshape(30, -1, layer.positions)
            ones = torch.ones(found.shape[1], dtype=torch.float64)
            assert torch.allclose(found.mean((0, 2)) - layer.bias, 0 * ones, atol=1e-6)
            assert torch.allclose(
                found.var((0, 2), correction=0).sqrt(), layer.weight.abs(), rtol=0.2
            )
        z = layer(z)
        z = z if after is None else after.value(z)


def test_shares_of_a_batch_give_the_statistics_of_all_of_it():
    whole = mixed_network(LAYERS[:2] + LAYERS[2:4], shape=(1, 8, 8), classes=10).double()
    images = torch.rand(30, 1, 8, 8, dtype=torch.float64)
    parts = [images[0::3], images[1::3], images[2::3]]
    sums = []
    for part in parts:
        update_statistics(copy.deepcopy(whole), part, 4, lambda s: sums.append(s) or s)
    shared = copy.deepcopy(whole)
    update_statistics(shared, parts[0], 4, lambda s: sum(sums))
    update_statistics(whole, images, 4, lambda s: s)
    for one, other in zip(_normalizations(shared), _normalizations(whole), strict=True):
        assert torch.allclose(one.mean, other.mean) and torch.allclose(one.variance, other.variance)


def test_it_learns_and_a_restart_changes_no_bit():
    split = data.load(SPEC.data)
    spec = effects.override(SPEC, {"train.objective": "standard"})
    kept = []
    network = loop.train(
        spec, split.train, report=lambda end: kept.append(copy.deepcopy(end.state()))
    )
    again = loop.train(spec, split.train, state=kept[5])
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    right = network(split.validation.images).argmax(1) == split.validation.labels
    assert float(right.double().mean()) > 0.7
    first, second = _normalizations(network)
    assert (first.mean != 0).all() and (second.variance != 1).all()


@pytest.mark.slow
def test_what_is_trained_is_certified_and_verified(tmp_path):
    trained = loop.train(SPEC.override({"train.epochs": 3}), data.load(SPEC.data).train)

    def take(model):
        model.load_state_dict(trained.state_dict())

    run = write_run(tmp_path, SPEC.override({"data.limit": 12}), change=take)
    report = verify_run(run)
    assert report.sound and report.checked == 12


@pytest.mark.parametrize("objective", ["standard", "pgd", "crt", "ibp"])
def test_every_objective_takes_it(objective):
    spec = effects.override(SPEC, {"train.objective": objective, "train.epochs": 1})
    network = loop.train(spec, data.load(SPEC.data).train)
    assert all(torch.isfinite(part).all() for part in network.state_dict().values())


def test_statistics_inside_a_block_are_those_of_its_batch():
    """A branch and a shortcut with batch normalisation, as residual networks have them."""
    layers = [
        {
            "kind": "block",
            "branch": [
                {"kind": "convolution", "channels": 3, "padding": 1, "activation": "none"},
                {"kind": "batch_normalization", "activation": "tanh"},
                {"kind": "convolution", "channels": 4, "padding": 1, "activation": "none"},
                {"kind": "batch_normalization"},
            ],
            "shortcut": [
                {"kind": "convolution", "channels": 4, "kernel": 1, "activation": "none"},
                {"kind": "batch_normalization"},
            ],
            "activation": "silu",
        }
    ]
    network = mixed_network(layers, shape=(1, 6, 6), classes=3).double()
    images = torch.rand(30, 1, 6, 6, dtype=torch.float64)
    update_statistics(network, images, 0, lambda sums: sums)
    first, norm = network.maps[0].maps[0].links
    second, last = network.maps[1].maps[0].links
    short, beside = network.maps[1].maps[1].links
    x = images.flatten(1)
    for layer, z in (
        (norm, first(x)),
        (last, second(torch.tanh(norm(first(x))))),
        (beside, short(x)),
    ):
        found = z.reshape(30, -1, 36)
        assert torch.allclose(layer.mean, found.mean((0, 2)))
        assert torch.allclose(layer.variance, found.var((0, 2), correction=0))
