"""Radii at points are never above the truth, however inexact the numbers that they are given."""

import math

import pytest
import torch

from raycrt.bounds.rounding import RoundingErrors
from raycrt.margins.proofs.proof import Measured, RadiusProof
from tests.models import random_network

N = 400
SHARE = 1e-14


def _units(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def _radius(value, gradient, u, m, value_error=0.0, gradient_error=0.0):
    products = (gradient * gradient, gradient * u, u * u)
    gg, gu, uu = (part.sum(1) for part in products)
    pair = torch.zeros(N, dtype=torch.int64)
    measured = Measured(
        label=pair,
        target=pair + 1,
        image_norm=torch.zeros(N, dtype=torch.float64),
        point_norm=torch.zeros(N, dtype=torch.float64),
        value=value,
        value_error=torch.full_like(value, value_error),
        gradient_error=torch.full_like(value, gradient_error),
        gg=gg,
        gu=gu,
        uu=uu,
        share=SHARE,
    )
    m = torch.full_like(value, m)
    return RadiusProof(errors=RoundingErrors.of(random_network())).at_points(measured, m)


class _Margin:
    """f(u) = 1 - g.u - m |u|^2 / 2: zero first at `nearest`, `distance` away along g."""

    def __init__(self, m, steepness=1.5):
        self.m, self.ahead = m, _units(0)
        self.g = -steepness * self.ahead
        self.distance = 2 / (steepness + math.sqrt(steepness**2 + 2 * m))
        self.nearest = self.distance * self.ahead

    def value(self, u):
        return 1 + (self.g * u).sum(1) - self.m * u.square().sum(1) / 2

    def gradient(self, u):
        return self.g - self.m * u


# Where points lie on the way to the nearest point of the boundary, and how far beside it.
PLACES = [(0.0, 0.0), (0.5, 0.2), (0.97, 0.01), (1.0, 0.0), (1.0, 0.1), (1.2, 0.05)]


@pytest.mark.parametrize("m", [0.0, 0.3, 3.0])
@pytest.mark.parametrize(("along", "beside"), PLACES)
@pytest.mark.parametrize("off", [0.0, 1e-6, 1e-3, 0.1])
def test_a_gradient_that_is_off_in_the_worst_direction_proves_no_more_than_the_truth(
    m, along, beside, off
):
    f = _Margin(m)
    u = along * f.nearest + beside * _units(1)
    between = torch.nn.functional.normalize(f.nearest - u, dim=1)
    for direction in (between, -between, f.ahead, -f.ahead, _units(2)):
        found = _radius(f.value(u), f.gradient(u) + off * direction, u, m, gradient_error=off)
        assert (found <= f.distance).all()
    exact = _radius(f.value(u), f.gradient(u), u, m)
    assert (exact >= f.distance * (1 - 1e-8)).all()


@pytest.mark.parametrize("m", [0.0, 0.3, 3.0])
@pytest.mark.parametrize(("along", "beside"), PLACES)
def test_a_value_that_is_off_proves_no_more_than_the_truth(m, along, beside):
    f = _Margin(m)
    u = along * f.nearest + beside * _units(1)
    for off in (1e-6, 1e-3, 0.1):
        found = _radius(f.value(u) + off, f.gradient(u), u, m, value_error=off)
        assert (found <= f.distance).all()
        # The value is taken for no more than 2 `off` too low: that has its price and no other.
        assert (found >= f.distance * (1 - 3 * off) - 1e-8).all()


@pytest.mark.parametrize("m", [0.0, 0.3])
def test_where_a_point_touches_the_boundary_an_inexact_gradient_costs_its_square(m):
    f = _Margin(m)

    def cost(off):
        found = _radius(0 * f.value(f.nearest), f.gradient(f.nearest), f.nearest, m, 0.0, off)
        return float((1 - found / f.distance).max()) - 6e-10

    assert 0 < cost(1e-2) < 1e-4
    assert cost(1e-3) < cost(1e-2) / 50
