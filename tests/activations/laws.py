"""What holds of every activation. A record earns all of it with one fixture, `record`."""

from __future__ import annotations

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch

from raycrt.activations import NUMPY, ULPS, Activation, check
from raycrt.networks.nonlinearity import TORCH
from raycrt.verify.ranges import of_curvature, of_slope

GRID = torch.cat([torch.linspace(-30, 30, 600_001, dtype=torch.float64), torch.tensor([-1e9, 1e9])])
NUMBERS = np.random.default_rng(0).normal(size=4000) * np.repeat([0.1, 1.0, 5.0, 30.0], 1000)
PROVED = {"slope": of_slope, "curvature": of_curvature}
# 50 digits: exact, next to a float64.
EXACT = SimpleNamespace(
    exp=mpmath.exp,
    tanh=mpmath.tanh,
    arctan=mpmath.atan,
    erf=mpmath.erf,
    sigmoid=lambda z: 1 / (1 + mpmath.exp(-z)),
    softplus=lambda z: mpmath.log1p(mpmath.exp(z)),
)
# z / sqrt(1 + z^2); s'' vanishes at 0, s''' = (12 z^2 - 3) (1 + z^2)^(-7/2) at 1/2 and -1/2.
ISRU = Activation(
    name="isru",
    value=lambda z, xp: z * (1 + z * z) ** -0.5,
    slope=lambda z, xp: (1 + z * z) ** -1.5,
    curvature=lambda z, xp: -3 * z * (1 + z * z) ** -2.5,
    slope_critical=(0.0,),
    curvature_critical=(-0.5, 0.5),
    slope_limits=(0.0, 0.0),
)
both = pytest.mark.parametrize("which", PROVED)


class ActivationLaws:
    def test_it_is_what_bounds_assume(self, record: Activation) -> None:
        check(record)

    def test_slope_and_curvature_are_the_derivatives(self, record: Activation) -> None:
        z = torch.linspace(-8, 8, 2001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(record.value(z, TORCH).sum(), z)
        assert torch.allclose(slope, record.slope(z, TORCH), atol=1e-12)
        z = z.detach().requires_grad_()
        (curvature,) = torch.autograd.grad(record.slope(z, TORCH).sum(), z)
        assert torch.allclose(curvature, record.curvature(z, TORCH), atol=1e-12)

    @both
    def test_global_ranges_hold_and_are_attained(self, record: Activation, which: str) -> None:
        values = getattr(record, which)(GRID, TORCH)
        low, high = getattr(record, f"{which}_range")
        assert low <= float(values.min()) and float(values.max()) <= high
        assert float(values.min()) - low < 1e-6 * (high - low)
        assert high - float(values.max()) < 1e-6 * (high - low)

    @both
    def test_ranges_on_intervals_hold_and_are_tight(self, record: Activation, which: str) -> None:
        generator = torch.Generator().manual_seed(0)
        ends = torch.rand(400, 2, generator=generator, dtype=torch.float64) * 12 - 6
        ends[:100, 1] = ends[:100, 0] + 0.1 * torch.rand(100, generator=generator)
        low, high = ends.amin(1), ends.amax(1)
        share = torch.linspace(0, 1, 4001, dtype=torch.float64)
        values = getattr(record, which)(low[:, None] + share * (high - low)[:, None], TORCH)
        bound_low, bound_high = getattr(record, f"{which}_range_on")(low, high, TORCH)
        assert (bound_low <= values.amin(1)).all() and (values.amax(1) <= bound_high).all()
        assert float((values.amin(1) - bound_low).max()) < 1e-5
        assert float((bound_high - values.amax(1)).max()) < 1e-5

    def test_a_critical_point_at_an_end_of_an_interval_counts(self, record: Activation) -> None:
        for point in record.curvature_critical:
            at = torch.tensor([point], dtype=torch.float64)
            low, high = record.curvature_range_on(at, at, TORCH)
            assert low <= record.curvature(at, TORCH) <= high

    def test_limits(self, record: Activation) -> None:
        for end, limit in zip((-1e9, 1e9), record.slope_limits, strict=True):
            at = torch.tensor([end], dtype=torch.float64)
            assert float(record.slope(at, TORCH)) == pytest.approx(limit, abs=1e-15)
            assert float(record.curvature(at, TORCH)) == pytest.approx(0, abs=1e-15)

    def test_slopes_stay_below_two(self, record: Activation) -> None:
        """Rounding errors and curvatures grow with its powers."""
        assert 0 < record.slope_bound < 2

    @pytest.mark.parametrize("dtype", ["float32", "float64", "numpy"])
    def test_rounding_stays_within_the_units_assumed(self, record: Activation, dtype: str) -> None:
        """By `ULPS`, as bounds of rounding errors spend them on values and slopes."""
        kind = torch.float32 if dtype == "float32" else torch.float64
        number, at = torch.finfo(kind), torch.from_numpy(NUMBERS[::20]).to(kind)
        steep, zero = record.slope_bound, abs(float(record.value(torch.zeros(1), TORCH)))
        with mpmath.workdps(50):
            for which in ("value", "slope"):
                formula = getattr(record, which)
                found = formula(at.numpy(), NUMPY) if dtype == "numpy" else formula(at, TORCH)
                for z, value in zip(at.tolist(), found.tolist(), strict=True):
                    off = abs(value - formula(mpmath.mpf(z), EXACT))
                    size = (1 + steep) * abs(z) + zero if which == "value" else 16 * max(1, steep)
                    assert off <= ULPS * number.eps * size + 8 * number.smallest_normal, (which, z)

    @both
    def test_the_checker_s_range_holds_and_is_no_wider(
        self, record: Activation, which: str
    ) -> None:
        formula, proved = getattr(record, which), PROVED[which](record)
        low, high = getattr(record, f"{which}_range")
        size = max(-low, high)
        assert low - 1e-13 * size <= proved.low and proved.high <= high + 1e-13 * size
        values = formula(NUMBERS, NUMPY)
        assert (proved.low <= values).all() and (values <= proved.high).all()

    @both
    def test_the_checker_s_ranges_on_intervals_hold_and_are_no_wider(
        self, record: Activation, which: str
    ) -> None:
        rng = np.random.default_rng(1)
        ends = np.sort(rng.normal(size=(600, 2)) * 10.0 ** rng.uniform(-4, 8, (600, 1)), axis=1)
        proved = PROVED[which](record)
        low, high = proved.on(*ends.T)
        inside = ends[:, :1] + np.linspace(0, 1, 3001) * (ends[:, 1:] - ends[:, :1])
        inside = np.clip(inside, ends[:, :1], ends[:, 1:])
        values = getattr(record, which)(inside, NUMPY)
        # What numpy rounds is not in the interval of the exact values.
        slack = 1e-14 * proved.bound * np.maximum(1, np.abs(ends).max(1))
        assert (low - slack <= values.min(1)).all() and (values.max(1) <= high + slack).all()
        own = (torch.from_numpy(end) for end in ends.T)
        theirs = getattr(record, f"{which}_range_on")(*own, TORCH)
        slack = 1e-14 * proved.bound
        assert (theirs[0].numpy() - low <= slack).all() and (
            high - theirs[1].numpy() <= slack
        ).all()
