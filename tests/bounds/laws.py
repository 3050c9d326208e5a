"""What holds of every curvature bound. One earns all of it with a fixture `bound`: a function of a
network and points (n, features), float64, to m (classes, classes) that hold at these points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raycrt.activations import ACTIVATIONS
from raycrt.networks.network import Network
from tests.models import LINEAR, MIXED, mixed_network, random_network

Bound = Callable[[Network, Tensor], Tensor]
PAIRS = [(0, 1), (1, 0), (2, 3)]


def most_negative(network: Network, y: int, t: int, points: Tensor) -> float:
    """Minus the smallest eigenvalue of the exact Hessians of a margin at `points`."""

    def margin(x: Tensor) -> Tensor:
        logits = network(x[None])[0]
        return logits[y] - logits[t]

    hessians = torch.func.vmap(torch.func.hessian(margin))(points).detach()
    return -float(torch.linalg.eigvalsh(hessians)[:, 0].min())


def _points(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(60, 5, generator=generator, dtype=torch.float64)


class BoundLaws:
    @pytest.mark.parametrize(
        ("depth", "name"), [*((3, name) for name in ACTIVATIONS), (2, "tanh"), (5, "softplus")]
    )
    def test_no_exact_hessian_exceeds_it(self, bound: Bound, depth: int, name: str) -> None:
        network = random_network(depth, name=name, seed=depth).double()
        points = _points()
        m = bound(network, points)
        for y, t in PAIRS:
            assert most_negative(network, y, t, points) <= float(m[y, t])
        assert (m.diagonal() == 0).all() and torch.isfinite(m).all()

    @pytest.mark.parametrize("layers", MIXED.values(), ids=MIXED)
    def test_no_exact_hessian_of_mixed_layers_exceeds_it(
        self, bound: Bound, layers: list[dict[str, Any]]
    ) -> None:
        network = mixed_network(layers).double()
        points = _points()
        m = bound(network, points)
        for y, t in PAIRS:
            assert most_negative(network, y, t, points) <= float(m[y, t])

    def test_a_linear_network_has_none(self, bound: Bound) -> None:
        assert (bound(random_network(3, name=LINEAR).double(), _points()) <= 1e-9).all()

    def test_it_scales_with_the_last_layer(self, bound: Bound) -> None:
        network = random_network(3).double().requires_grad_(False)
        before = bound(network, _points())
        network.layers[-1].weight.mul_(4)
        network.layers[-1].bias.mul_(4)
        torch.testing.assert_close(bound(network, _points()), 4 * before, rtol=1e-6, atol=1e-9)

    def test_it_scales_with_the_square_of_the_input(self, bound: Bound) -> None:
        """A Jacobian enters a Hessian twice: a bound that takes one factor once is too small."""
        network = random_network(3).double().requires_grad_(False)
        before = bound(network, _points())
        network.layers[0].weight.mul_(8)
        after = bound(network, _points() / 8)
        torch.testing.assert_close(after, 64 * before, rtol=1e-6, atol=1e-9)

    def test_it_follows_a_renaming_of_the_classes(self, bound: Bound) -> None:
        network = random_network(3).double().requires_grad_(False)
        before, order = bound(network, _points()), torch.tensor([2, 0, 3, 1])
        last = network.layers[-1]
        last.weight.copy_(last.weight[order].clone())
        last.bias.copy_(last.bias[order].clone())
        expected = before[order][:, order]
        torch.testing.assert_close(bound(network, _points()), expected, rtol=1e-6, atol=1e-9)
