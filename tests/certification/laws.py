"""What holds of every way to certify. One earns all of it with a fixture `options`, those of a
`Certifier`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raycrt import Certifier, Status, attack
from tests.models import random_network


def _images(n: int = 24) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(0))


class CertificateLaws:
    @pytest.fixture
    def certifier(self, options: dict[str, Any]) -> Certifier:
        return Certifier(random_network(3, classes=5, gain=1.5), **options)

    def test_no_attack_lies_inside_a_radius(self, options: dict[str, Any]) -> None:
        for depth, name in ((2, "tanh"), (3, "softplus"), (4, "gelu")):
            network = random_network(depth, name=name, seed=10 + depth)
            found = Certifier(network, **options)(_images())
            assert (found.radius > 0).any()
            assert (found.radius <= attack(network, _images()).distance).all()

    def test_the_binding_class_is_another_and_bounds_the_runner_up(
        self, certifier: Certifier
    ) -> None:
        found = certifier(_images())
        assert (found.binding != found.prediction).all()
        assert (found.radius <= found.radius_runner_up).all()
        same = found.binding == found.runner_up
        assert torch.equal(found.radius[same], found.radius_runner_up[same])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_bad_image_fails_alone(self, certifier: Certifier, bad: float) -> None:
        images = _images(12)
        images[5, 3] = bad
        found, others = certifier(images), torch.arange(12) != 5
        assert int(found.status[5]) == Status.NON_FINITE_INPUT and float(found.radius[5]) == 0
        alone = certifier(images[others])
        torch.testing.assert_close(found.radius[others], alone.radius, rtol=1e-6, atol=0)

    def test_weights_that_are_not_finite_prove_nothing(self, options: dict[str, Any]) -> None:
        network = random_network(2)
        network.layers[0].weight.data[0, 0] = math.nan
        found = Certifier(network, **options)(_images(3))
        assert (found.radius == 0).all()
        assert (found.status == Status.NON_FINITE_NETWORK).all()

    def test_neither_order_nor_batches_change_a_row(self, options: dict[str, Any]) -> None:
        network, order = random_network(3, gain=1.5), torch.arange(23, -1, -1)
        whole = Certifier(network, **options)(_images())
        parts = Certifier(network, **options, batch_size=5)(_images()[order])
        assert torch.equal(parts.prediction, whole.prediction[order])
        torch.testing.assert_close(parts.radius, whole.radius[order], rtol=1e-5, atol=1e-9)

    def test_what_is_certified_in_full_is_decided_so(self, options: dict[str, Any]) -> None:
        network = random_network(3, gain=1.5)
        full = Certifier(network, **options)(_images())
        at = float(full.radius.median()) * 0.9
        decided = Certifier(network, **options)(_images(), at=at)
        assert decided.certified_at(at)[full.radius > at].all()
