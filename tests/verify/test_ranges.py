"""Ranges of slope and curvature from the formulas alone: sound, tight, and their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raycrt.activations import ACTIVATIONS, softplus
from raycrt.networks.network import TORCH
from raycrt.verify.intervals import INTERVALS, Interval, of
from raycrt.verify.model import NUMPY
from raycrt.verify.ranges import of_curvature, of_slope
from tests.models import LINEAR

EVERY = [*ACTIVATIONS.values(), *(softplus(beta) for beta in (0.001, 0.3, 4.0, 1e4)), LINEAR]
NUMBERS = np.random.default_rng(0).normal(size=4000) * np.repeat([0.1, 1.0, 5.0, 30.0], 1000)
PROVED = {"slope": of_slope, "curvature": of_curvature}


@pytest.fixture(params=EVERY, ids=lambda record: record.name)
def each(request):
    return request.param


@pytest.mark.parametrize("which", PROVED)
def test_ranges_hold_and_are_no_wider_than_the_certifiers(each, which):
    formula, proved = getattr(each, which), PROVED[which](each)
    low, high = getattr(each, f"{which}_range")
    size = max(-low, high)
    assert low - 1e-13 * size <= proved.low and proved.high <= high + 1e-13 * size
    values = formula(NUMBERS, NUMPY)
    assert (proved.low <= values).all() and (values <= proved.high).all()


@pytest.mark.parametrize("which", PROVED)
def test_ranges_on_intervals_hold_and_are_no_wider_than_the_certifiers(each, which):
    rng = np.random.default_rng(1)
    ends = np.sort(rng.normal(size=(600, 2)) * 10.0 ** rng.uniform(-4, 8, (600, 1)), axis=1)
    proved = PROVED[which](each)
    low, high = proved.on(*ends.T)
    inside = ends[:, :1] + np.linspace(0, 1, 3001) * (ends[:, 1:] - ends[:, :1])
    inside = np.clip(inside, ends[:, :1], ends[:, 1:])
    values = getattr(each, which)(inside, NUMPY)
    # What numpy rounds is not in the interval of the exact values.
    slack = 1e-14 * proved.bound * np.maximum(1, np.abs(ends).max(1))
    assert (low - slack <= values.min(1)).all() and (values.max(1) <= high + slack).all()
    theirs = getattr(each, f"{which}_range_on")(*(torch.from_numpy(end) for end in ends.T), TORCH)
    slack = 1e-14 * proved.bound
    assert (theirs[0].numpy() - low <= slack).all() and (high - theirs[1].numpy() <= slack).all()


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
