"""Every curvature bound that enters a certificate, by the same laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raycrt.bounds import curvature
from raycrt.bounds.local_curvature import LocalCurvature
from raycrt.bounds.rounding import RoundingErrors
from raycrt.networks.network import Network
from tests.bounds.laws import BoundLaws


def _on_a_ball(network: Network, points: Tensor) -> Tensor:
    """On the smallest ball around 0 that holds the points."""
    local = LocalCurvature.of(network, RoundingErrors.of(network))
    radius = float(points.norm(dim=1).max())
    m = torch.zeros(network.classes, network.classes, dtype=torch.float64)
    for y in range(network.classes):
        others = torch.tensor([t for t in range(network.classes) if t != y])
        m[y, others] = local(torch.zeros(network.features).double(), radius, y, others)
    return m


def _by_classes(network: Network, points: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "FEW_CLASSES", 1)
        return curvature.margin_curvature(network)


BOUNDS = {
    "each pair": lambda network, points: curvature.margin_curvature(network),
    "by classes": _by_classes,
    "on a ball": _on_a_ball,
}


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
class TestEvery(BoundLaws):
    pass
