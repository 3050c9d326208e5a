"""Memory: a certifier's batches, and the tensors that it makes of them, stay within the budget."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raycrt import Certifier
from raycrt.margins.tolerances import Tolerances
from tests.models import random_network


class Live(TorchDispatchMode):
    """The most bytes, `peak`, of tensors made in a block that were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.users: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.given: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                place = tensor.untyped_storage().data_ptr()
                if place not in self.sizes:
                    self.given.add(place)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.given or storage.nbytes() == 0:
            return
        self.sizes[place] = storage.nbytes()
        self.users[place] += 1
        weakref.finalize(tensor, self._drop, place)
        self.peak = max(self.peak, sum(self.sizes.values()))

    def _drop(self, place: int) -> None:
        self.users[place] -= 1
        if self.users[place] == 0:
            del self.sizes[place]


def test_what_is_alive_is_counted():
    x = torch.zeros(1000, dtype=torch.float64)
    with Live() as live:
        for _ in range(5):
            y = x + 1
            y[:10].add_(1)
            del y
        held = [x * 2 for _ in range(3)]
    assert live.peak == 3 * 8000 and len(held) == 3


NETWORKS = {
    "2": lambda: random_network(2, features=60, width=40, classes=10, gain=1.5),
    "3": lambda: random_network(3, features=30, width=60, classes=10, gain=1.5),
    "many classes": lambda: random_network(2, features=10, width=30, classes=30, gain=1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_any_size_stays_within_the_budget(monkeypatch, solved, name):
    """Chunks of images, chunks of margins to solve, and all that is alive at a time."""
    network = NETWORKS[name]()
    features = network.features
    images = torch.randn(120, features, generator=torch.Generator().manual_seed(0))
    plain = Certifier(network, batch_size=100)
    whole = plain(images)
    budget = 300_000
    monkeypatch.setattr("raycrt.certification.certifier.quicken_softplus", lambda: None)
    certifier = Certifier(
        network,
        batch_size=10**9,
        curvature=plain.curvature,
        tolerances=Tolerances(memory=budget),
    )
    solved.clear()
    with Live() as live:
        parts = list(certifier.batches(images))
    rows = max(len(part) for part in parts)
    assert sum(len(part) for part in parts) == 120 and 1 < rows < 120
    assert max(solved) <= rows
    assert live.peak <= budget
    radius = torch.cat([part.radius for part in parts])
    torch.testing.assert_close(radius, whole.radius, rtol=1e-5, atol=0)
