"""What holds of every training objective: a member of the registry earns all of it."""

import copy

import pytest
import torch

from raycrt import data
from raycrt.networks import checkpoint
from raycrt.networks.layers.affine import Dense
from raycrt.networks.layers.convolution import Convolution
from raycrt.networks.network import Network
from raycrt.specs import validate
from raycrt.training import loop, objectives
from raycrt.training.folding.part import fresh
from raycrt.training.objectives import OBJECTIVES
from raycrt.training.options import effects
from tests.models import random_network

TINY = validate(
    {
        "model": {"width": 24},
        "train": {"epochs": 4, "batch_size": 64, "radius": 0.4, "learning_rate": 0.005},
        "data": {"limit": 300},
    }
)

CONVOLUTIONAL = TINY.override(
    {
        "model.channels": [6],
        "train.epochs": 5,
        "train.radius": 0.1,
        "train.optimizer": "muon",
        "train.muon_rate": 0.05,
        "train.learning_rate": 0.01,
        "train.gamma": 1e-3,
        "data.limit": None,
    }
)

FAST = {
    "train.optimizer": "muon",
    "train.muon_rate": 0.05,
    "train.precision": "bfloat16",
    "train.components": 20,
    "train.averaging": 0.9,
    "train.warm_up": 0.1,
    "train.augmentation": {"rotation": 5, "shift": 0.3, "scaling": 0.05, "until": 0.9},
}


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


class ObjectiveLaws:
    def test_it_learns(self, objective):
        split = data.load(TINY.data)
        spec = effects.override(
            TINY, {"train.objective": objective, "train.epochs": 15, "train.gamma": 1e-3}
        )
        losses = []
        network = loop.train(
            spec, split.train, report=lambda end: losses.append(end.metrics["loss"])
        )
        accuracy = float(
            (network(split.validation.images).argmax(1) == split.validation.labels).double().mean()
        )
        assert accuracy > 0.6

    def test_each_row_has_a_loss_and_each_weight_a_gradient(self, objective):
        spec = effects.override(TINY, {"train.objective": objective, "train.gamma": 0.1}).train
        module = objectives.build(random_network(3), spec)
        images, labels = torch.randn(7, 5), torch.arange(7) % 4
        losses = module(images, labels, torch.tensor(0.3))
        assert losses.loss.shape == losses.correct.shape == losses.robust.shape == (7,)
        assert torch.isfinite(losses.loss).all()
        losses.loss.sum().backward()
        assert all(
            p.grad is not None and torch.isfinite(p.grad).all() for p in module.network.parameters()
        )
        empty = module(images[:0], labels[:0], torch.tensor(0.3))
        assert float(empty.loss.detach().sum()) == 0

    @pytest.mark.slow
    def test_convolutions_learn_without_a_dense_matrix(self, objective, monkeypatch):
        def refuse(layer):
            raise AssertionError("a step must not form the matrix of a convolution")

        monkeypatch.setattr(Convolution, "matrix", refuse)
        split = data.load(CONVOLUTIONAL.data)
        network = loop.train(
            effects.override(CONVOLUTIONAL, {"train.objective": objective}), split.train
        )
        right = network(split.validation.images).argmax(1) == split.validation.labels
        assert float(right.double().mean()) > 0.8

    def test_a_convolution_trains_as_the_dense_layer_that_it_is(self, objective):
        """Loss and gradient of the dense weights are those of the network made of dense maps."""
        spec = effects.override(CONVOLUTIONAL, {"train.objective": objective})
        network = fresh(spec).double()
        first = network.layers[0]
        dense = Dense(first.in_features, first.out_features).double()
        dense.weight.data, dense.bias.data = first.matrix().detach(), first.offset().detach()
        twin = Network([dense, *copy.deepcopy(network.layers[1:])], network.activation)
        split = data.load(spec.data).train.take(slice(40))
        results = []
        for model in (network, twin):
            module = objectives.build(model, spec.train)
            if module.estimate is not None:
                module.estimate.update(model)
            loss = module(
                split.images.double(), split.labels, torch.tensor(0.3).double()
            ).loss.mean()
            loss.backward()
            results.append((loss.detach(), model.layers[1].weight.grad))
        assert torch.allclose(results[0][0], results[1][0], rtol=1e-9)
        assert torch.allclose(results[0][1], results[1][1], atol=1e-9)

    def test_it_grows_with_the_radius_if_it_uses_one(self, objective):
        if "radius" not in OBJECTIVES[objective].uses:
            pytest.skip("no radius is trained for")
        module = objectives.build(
            random_network(3), effects.override(TINY, {"train.objective": objective}).train
        )
        images, labels = torch.randn(50, 5), torch.arange(50) % 4
        small, large = (module(images, labels, torch.tensor(r)).loss.mean() for r in (0.01, 0.5))
        assert large > small

    @pytest.mark.parametrize(
        "more",
        [{}, {"train.averaging": 0.9}, FAST, {"model.channels": [4]}],
        ids=["", "average", "fast", "convolutional"],
    )
    def test_a_restart_changes_no_bit(self, tmp_path, objective, more):
        spec = effects.override(TINY, {"train.objective": objective, **more})
        split = data.load(spec.data).train

        def keep(end):
            if end.epoch == 2:
                checkpoint.save_state(tmp_path, end.state())

        whole = loop.train(spec, split, report=keep)
        resumed = loop.train(spec, split, state=checkpoint.load_state(tmp_path))
        assert same_weights(whole, resumed)

    def test_shares_of_workers_add_up_to_the_batch(self, objective):
        """Losses and gradients of interleaved shares sum to those of the whole batch."""
        spec = effects.override(TINY, {"train.objective": objective, "train.gamma": 0.1}).train
        network = random_network(3).double()
        images, labels = torch.randn(12, 5).double(), torch.arange(12) % 4
        sums = []
        for size in (1, 3):
            module = objectives.build(copy.deepcopy(network), spec)
            module.before_step()
            for rank in range(size):
                ours = slice(rank, None, size)
                module(images[ours], labels[ours], torch.tensor(0.3).double()).loss.sum().backward()
            sums.append([weight.grad for weight in module.network.parameters()])
        for whole, added in zip(*sums, strict=True):
            torch.testing.assert_close(added, whole, rtol=1e-7, atol=1e-9)
