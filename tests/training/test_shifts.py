"""Networks that are the mean of a narrower one over small shifts of the image."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from raycrt import data
from raycrt.bounds.curvature import margin_curvature
from raycrt.errors import InvalidInput
from raycrt.training import loop
from raycrt.training.folding.part import fresh
from raycrt.training.folding.shifts import averaged
from tests.models import random_network
from tests.training.laws import TINY, same_weights

SHIFTED = TINY.override({"train.shift_averaged": 1})


def shifted(images, down, right):
    """Images (n, channels, height, width) moved by so many pixels, with zeros on the other side."""
    height, width = images.shape[2:]
    padded = F.pad(images, (abs(right),) * 2 + (abs(down),) * 2)
    top, left = abs(down) - down, abs(right) - right
    return padded[..., top : top + height, left : left + width]


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("pixels", [1, 2])
def test_logits_are_the_mean_over_four_shifts(depth, pixels):
    torch.manual_seed(0)
    images = torch.randn(9, 2, 3, 5, dtype=torch.float64)
    network = random_network(depth, width=8, features=30).double()
    whole = averaged(network, (2, 3, 5), pixels)
    moved = [
        network(shifted(images, down, right))
        for down in (pixels, -pixels)
        for right in (pixels, -pixels)
    ]
    assert torch.allclose(whole(images), torch.stack(moved).mean(0))
    assert not torch.allclose(whole(images), network(images), atol=1e-2)


def test_the_mean_curves_no_more_than_the_network():
    torch.manual_seed(0)
    network = random_network(2, width=8, features=30).double()
    whole = averaged(network, (2, 3, 5), 1)
    before, after = (margin_curvature(each) for each in (network, whole))
    assert (after <= before * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train.components": 6},
        {"model.depth": 3, "train.linear_layers": 1, "model.width": 256},
        {"train.mirror_invariant": True},
    ],
    ids=["pixels", "components", "linear-layers", "mirror-invariant"],
)
def test_a_trained_network_is_the_mean_of_the_one_without_the_option(options):
    """With a quarter of its neurons; the four of them stand in the network that the spec names."""
    spec = SHIFTED.override(options)
    split = data.load(spec.data).train
    network = loop.train(spec, split)
    narrow = {"model.width": spec.model.width // 4, "train.shift_averaged": 0}
    inner = loop.train(spec.override(narrow), split)
    assert same_weights(network, averaged(inner, data.shape(spec.data), 1))
    shape = [(layer.out_features, layer.in_features) for layer in network.layers]
    assert shape == [(layer.out_features, layer.in_features) for layer in fresh(spec).layers]
    if spec.train.mirror_invariant:
        images = split.images[:50]
        assert torch.allclose(network(images), network(images.flip(-1)), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model.width": 18}, r"multiple of 4.*width=18"),
        ({"model.width": 20, "train.mirror_invariant": True}, r"multiple of 8.*width=20"),
        ({"train.shift_averaged": 8}, r"shift_averaged < height and width.*shift_averaged=8"),
        ({"model": {"channels": [4], "depth": 3}}, r"all layers are dense"),
        ({"model": {"layers": [{"kind": "dense", "width": 4}]}}, r"all layers are dense"),
        (
            {"model.depth": 3, "train.linear_layers": 1, "model.width": 128},
            r"model\.width / 4, as train\.shift_averaged is set.*width=128",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused_before_any_work(options, why):
    with pytest.raises(InvalidInput, match=why):
        loop.train(SHIFTED.override(options), data.load(TINY.data).train)


def test_a_stopped_training_resumes_to_the_same_mean():
    spec = SHIFTED.override({"train.epochs": 3, "train.averaging": 0.9})
    split, states = data.load(spec.data).train, []
    whole = loop.train(spec, split, report=lambda end: states.append(deepcopy(end.state())))
    assert same_weights(whole, loop.train(spec, split, state=states[0]))


def test_given_weights_are_not_averaged():
    with pytest.raises(InvalidInput, match=r"shift_averaged.*left out where weights are given"):
        loop.train(SHIFTED, data.load(TINY.data).train, start=fresh(TINY))
