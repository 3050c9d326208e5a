"""Weights that are tied so that an image and its mirror image have the same logits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from raycrt import data
from raycrt.errors import InvalidInput
from raycrt.specs import validate
from raycrt.training import loop
from raycrt.training.folding.part import fresh
from raycrt.training.folding.subspace import Subspace
from raycrt.training.folding.symmetry import Involution, tie, untied
from raycrt.training.options import rules
from tests.models import random_network
from tests.training.laws import TINY, same_weights

MIRRORED = TINY.override({"train.mirror_invariant": True})


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_tied_weights_give_mirror_images_the_same_logits(depth):
    torch.manual_seed(0)
    images = torch.randn(9, 1, 2, 5, dtype=torch.float64)
    network = random_network(depth, width=8, features=10).double()
    halves = [layer.matrix()[:4].clone() for layer in network.layers[:-1]]
    tie(network, Involution.mirror((1, 2, 5)))
    plain = untied(network)
    assert torch.allclose(plain(images), network(images))
    assert torch.allclose(plain(images), plain(images.flip(-1)))
    for layer, half in zip(plain.layers[:-1], halves, strict=True):
        assert torch.equal(layer.matrix()[:4], half)
    # Only half of each matrix is trained, and the mirror image of a neuron is another neuron.
    trained = sum(weight.numel() for weight in network.parameters())
    assert 2 * trained == sum(weight.numel() for weight in plain.parameters()) + network.classes
    assert not torch.allclose(plain.layers[0].matrix()[:4], plain.layers[0].matrix()[4:])


@pytest.mark.parametrize("width", [4, 5])
def test_principal_directions_of_images_and_mirror_images_are_even_or_odd(width):
    torch.manual_seed(0)
    # The last row of pixels is 0 in all images, so that some spreads are equal.
    images = torch.rand(40, 1, 3, width, dtype=torch.float64) * torch.tensor([[1], [2], [0]])
    mirror = Involution.mirror((1, 3, width))
    subspace = Subspace(images, 3 * width, mirror)
    both = Subspace(torch.cat([images, images.flip(-1)]), 3 * width)
    identity = torch.eye(3 * width, dtype=torch.float64)
    assert torch.allclose(subspace.basis @ subspace.basis.T, identity, atol=1e-12)
    spreads = [each(torch.cat([images, images.flip(-1)])).var(0) for each in (subspace, both)]
    assert torch.allclose(*spreads, atol=1e-12)
    inner = subspace.mirrored(mirror)
    assert (inner.signs == 1).sum() == 3 * ((width + 1) // 2)
    assert torch.allclose(subspace(images.flip(-1)), subspace(images) * inner.signs, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"train.components": 20}, {"model.depth": 3, "train.linear_layers": 1, "model.width": 64}],
    ids=["pixels", "components", "linear-layers"],
)
def test_a_trained_network_does_not_tell_left_from_right(options):
    spec = MIRRORED.override(options)
    split = data.load(spec.data).train
    network = loop.train(spec, split)
    images = split.images[:50]
    assert torch.allclose(network(images), network(images.flip(-1)), atol=1e-4)
    shape = [(layer.out_features, layer.in_features) for layer in network.layers]
    assert shape == [(layer.out_features, layer.in_features) for layer in fresh(spec).layers]
    plain = loop.train(spec.override({"train.mirror_invariant": False}), split)
    assert not torch.allclose(plain(images), plain(images.flip(-1)), atol=1e-2)


def test_a_stopped_training_resumes_to_the_same_tied_weights():
    spec = MIRRORED.override({"train.epochs": 3, "train.averaging": 0.9})
    split, states = data.load(spec.data).train, []
    whole = loop.train(spec, split, report=lambda end: states.append(deepcopy(end.state())))
    resumed = loop.train(spec, split, state=states[0])
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model.width": 9}, r"model\.width is a multiple of 2.*width=9"),
        ({"model": {"channels": [4], "depth": 3}}, r"all layers are dense"),
        ({"model": {"layers": [{"kind": "dense", "width": 4}]}}, r"all layers are dense"),
        ({"train.augmentation.mirror": True}, r"augmentation\.mirror must be left out"),
    ],
)
def test_what_cannot_be_tied_is_refused_before_any_work(options, why):
    with pytest.raises(InvalidInput, match=why):
        loop.train(MIRRORED.override(options), data.load(TINY.data).train)


def test_data_that_is_not_images_is_refused_before_it_is_read(tmp_path):
    facts = {"shape": [90], "class_names": ["ape", "bat"]}
    rows = {"source": "arrays", "path": str(tmp_path / "none.npz"), **facts}
    spec = validate({"model": {"width": 8}, "train": {"mirror_invariant": True}, "data": rows})
    with pytest.raises(InvalidInput, match=r"unless the data is images.*shape is \(90,\)"):
        rules.check_training(spec, fresh=True)


def test_given_weights_are_not_tied():
    with pytest.raises(InvalidInput, match=r"mirror_invariant.*left out where weights are given"):
        loop.train(MIRRORED, data.load(TINY.data).train, start=fresh(TINY))
