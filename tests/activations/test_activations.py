"""Every activation: its formulas are derivatives of each other, its ranges hold and are tight."""

import numpy as np
import pytest
import torch

from raycrt.activations import ACTIVATIONS, activation, softplus
from raycrt.errors import InvalidInput
from raycrt.networks.network import TORCH

EVERY = [*ACTIVATIONS.values(), softplus(4.0), softplus(0.3)]
GRID = torch.cat([torch.linspace(-30, 30, 600_001, dtype=torch.float64), torch.tensor([-1e9, 1e9])])


@pytest.fixture(params=EVERY, ids=lambda a: f"{a.name}")
def each(request):
    return request.param


def test_slope_and_curvature_are_the_derivatives(each):
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(each.value(z, TORCH).sum(), z)
    assert torch.allclose(slope, each.slope(z, TORCH), atol=1e-12)
    z = z.detach().requires_grad_()
    (curvature,) = torch.autograd.grad(each.slope(z, TORCH).sum(), z)
    assert torch.allclose(curvature, each.curvature(z, TORCH), atol=1e-12)


@pytest.mark.parametrize("which", ["slope", "curvature"])
def test_global_ranges_hold_and_are_attained(each, which):
    values = getattr(each, which)(GRID, TORCH)
    low, high = getattr(each, f"{which}_range")
    assert low <= float(values.min()) and float(values.max()) <= high
    assert float(values.min()) - low < 1e-6 * (high - low)
    assert high - float(values.max()) < 1e-6 * (high - low)


@pytest.mark.parametrize("which", ["slope", "curvature"])
def test_ranges_on_intervals_hold_and_are_tight(each, which):
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(400, 2, generator=generator, dtype=torch.float64) * 12 - 6
    ends[:100, 1] = ends[:100, 0] + 0.1 * torch.rand(100, generator=generator)
    low, high = ends.amin(1), ends.amax(1)
    inside = low[:, None] + torch.linspace(0, 1, 4001, dtype=torch.float64) * (high - low)[:, None]
    values = getattr(each, which)(inside, TORCH)
    bound_low, bound_high = getattr(each, f"{which}_range_on")(low, high, TORCH)
    assert (bound_low <= values.amin(1)).all() and (values.amax(1) <= bound_high).all()
    assert float((values.amin(1) - bound_low).max()) < 1e-5
    assert float((bound_high - values.amax(1)).max()) < 1e-5


def test_a_critical_point_at_an_end_of_an_interval_counts(each):
    for point in each.curvature_critical:
        at = torch.tensor([point], dtype=torch.float64)
        low, high = each.curvature_range_on(at, at, TORCH)
        value = each.curvature(at, TORCH)
        assert low <= value <= high


def test_softplus_is_exact_far_from_the_origin():
    z = torch.tensor([-60.0, 25.0, 39.0, 41.0, 60.0], dtype=torch.float64)
    assert np.allclose(softplus().value(z, TORCH), np.logaddexp(0, z.numpy()), rtol=1e-15)


def test_bad_names_and_sharpness_are_refused():
    with pytest.raises(InvalidInput, match=r"activation must be one of .* but got 'relu'"):
        activation("relu")
    with pytest.raises(InvalidInput, match=r"`beta > 0 and finite` must hold, .*beta=-1"):
        softplus(-1)
