"""Ranges of slope and curvature from the formulas alone: sound, tight, and their own."""

from dataclasses import replace

import numpy as np
import pytest

from raycrt.activations import ACTIVATIONS, NUMPY, softplus
from raycrt.verify.intervals import INTERVALS, Interval, of
from raycrt.verify.ranges import of_curvature, of_slope
from tests.activations.laws import ActivationLaws
from tests.models import LINEAR

SHARP_AND_FLAT = [*(softplus(beta) for beta in (0.001, 1e4)), LINEAR]
PROVED = {"slope": of_slope, "curvature": of_curvature}


class TestExtremes(ActivationLaws):
    """What is sampled from -8 to 8 shows nothing of such sharpness: the checker's ranges alone."""

    @pytest.fixture(params=SHARP_AND_FLAT, ids=lambda record: record.name)
    def record(self, request):
        return request.param

    test_slope_and_curvature_are_the_derivatives = None
    test_global_ranges_hold_and_are_attained = None
    test_ranges_on_intervals_hold_and_are_tight = None
    test_limits = None


def test_a_critical_point_that_a_record_leaves_out_is_found():
    for record in ACTIVATIONS.values():
        forged = replace(record, slope_critical=(), curvature_critical=())
        for which, prove in PROVED.items():
            assert (prove(forged).low, prove(forged).high) == (
                prove(record).low,
                prove(record).high,
            )
            if getattr(record, f"{which}_critical"):
                assert getattr(forged, f"{which}_range") != getattr(record, f"{which}_range")
            at = np.linspace(-3, 3, 7)
            assert np.array_equal(
                prove(forged).on(at - 2, at + 1), prove(record).on(at - 2, at + 1)
            )


def test_a_function_that_turns_everywhere_is_bounded_loosely_but_soundly():
    """Cells are not halved without end."""
    noise = replace(
        LINEAR, slope=lambda z, xp: (1e20 + z) - 1e20, curvature=lambda z, xp: 1e20 * z - 1e20 * z
    )
    for prove in PROVED.values():
        assert prove(noise).high >= 1e3


@pytest.mark.parametrize(
    ("formula", "derivative"),
    [
        (lambda z, xp: z / (1 + z * z) ** 0.5, lambda z: (1 + z * z) ** -1.5),
        (lambda z, xp: (1 + z * z) ** -1.5, lambda z: -3 * z * (1 + z * z) ** -2.5),
        (lambda z, xp: 3 - z**3 / 2, lambda z: -1.5 * z**2),
        (lambda z, xp: 1 / (2 + xp.exp(z)), lambda z: -np.exp(z) / (2 + np.exp(z)) ** 2),
        (lambda z, xp: np.float64(2) * xp.tanh(z) - xp.arctan(z), None),
        (lambda z, xp: xp.softplus(z) * xp.erf(z), None),
        (lambda z, xp: xp.sigmoid(z) - z, None),
    ],
)
def test_intervals_hold_values_and_derivatives(formula, derivative):
    rng = np.random.default_rng(2)
    low = rng.normal(size=500) * 2
    high = low + 10.0 ** rng.uniform(-12, 0, 500)
    found = formula(Interval(low, high, slope=of(np.ones(500))), INTERVALS)
    at = low + np.linspace(0, 1, 41)[:, None] * (high - low)
    values = formula(at, NUMPY)
    assert (found.low <= values).all() and (values <= found.high).all()
    slope = derivative(at) if derivative else (formula(at + 1e-6, NUMPY) - values) / 1e-6
    slack = 1e-14 if derivative else 1e-5
    assert (found.slope.low - slack <= slope).all() and (slope <= found.slope.high + slack).all()
    narrow = high - low < 1e-9
    assert (found.high - found.low)[narrow].max() < 1e-7


def test_what_is_not_bounded_is_infinite():
    around = Interval(np.array([-1.0]), np.array([2.0]))
    with np.errstate(all="ignore"):
        found = [1 / around, around**-0.5, around * np.inf, around + np.nan]
    assert all(each.low == -np.inf and each.high == np.inf for each in found)
    assert (0 * around).low == (0 * around).high == 0
