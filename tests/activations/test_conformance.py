"""What every bound assumes of an activation is checked where one is registered or used."""

import math
from dataclasses import replace

import pytest

from raycrt.activations import ACTIVATIONS, Activation, check, softplus
from raycrt.errors import InvalidInput
from raycrt.foreign.modules.elementwise import Elementwise
from raycrt.specs import validate
from tests.activations.laws import ISRU

EVERY = [*ACTIVATIONS.values(), *(softplus(beta) for beta in (1e-3, 0.3, 4.0, 1e4)), ISRU]


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.name)
def test_what_ships_passes_and_fails_without_any_of_its_critical_points(record):
    check(record)
    for which in ("slope", "curvature"):
        points = getattr(record, f"{which}_critical")
        for left_out in points:
            rest = tuple(point for point in points if point != left_out)
            with pytest.raises(InvalidInput, match=f"{which}_critical .* must list every point"):
                check(replace(record, **{f"{which}_critical": rest}))


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.name)
def test_derivatives_that_are_wrong_by_two_percent_are_found(record):
    with pytest.raises(InvalidInput, match=r"slope of .* must be the derivative of value|limit"):
        check(replace(record, slope=lambda z, xp: 1.02 * record.slope(z, xp)))
    with pytest.raises(InvalidInput, match=r"curvature of .* must be the derivative of slope"):
        check(replace(record, curvature=lambda z, xp: 1.02 * record.curvature(z, xp)))


STEEP = replace(
    ISRU,
    value=lambda z, xp: 2 * ISRU.value(z, xp),
    slope=lambda z, xp: 2 * ISRU.slope(z, xp),
    curvature=lambda z, xp: 2 * ISRU.curvature(z, xp),
)
MISTAKES = {
    "steep": (STEEP, r"\|slope\| < 2.0 everywhere.*slope_bound=2.0"),
    "limit": (replace(ISRU, slope_limits=(0.0, 1.0)), "approaches its limit at infinity.*limit=1"),
    "curved for ever": (
        replace(ISRU, curvature=lambda z, xp: 1.0 + 0 * z),
        "curvature approaches its limit at minus infinity.*found=1",
    ),
    "unknown function": (
        replace(ISRU, value=lambda z, xp: xp.relu(z)),
        "value of activation 'isru' must be made of .*'relu'",
    ),
    "library of its own": (
        replace(ISRU, value=lambda z, xp: math.atan(z)),
        "value of activation 'isru' must be made of",
    ),
    "one number for all": (replace(ISRU, slope=lambda z, xp: 0.5), "a finite number for each z"),
    "overflow": (
        replace(ISRU, value=lambda z, xp: xp.exp(z) - xp.exp(z) + z),
        "value is a finite number for each z",
    ),
    "corner": (
        Activation(
            name="relu",
            value=lambda z, xp: (z + (z * z) ** 0.5) / 2,
            slope=lambda z, xp: (1 + z / (z * z + 1e-300) ** 0.5) / 2,
            curvature=lambda z, xp: 0 * z,
            slope_critical=(),
            curvature_critical=(),
            slope_limits=(0.0, 1.0),
        ),
        "curvature of activation 'relu' must be the derivative of slope",
    ),
    "cancellation that only float32 shows": (
        replace(ISRU, slope=lambda z, xp: (1e5 + ISRU.slope(z, xp)) - 1e5),
        "slope of activation 'isru' must have a rounding error of at most|must be the derivative",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_record_is_refused_where_it_is_registered_or_used(mistake):
    record, message = MISTAKES[mistake]
    with pytest.raises(InvalidInput, match=message) as caught:
        ACTIVATIONS[record.name] = record
    assert record.name not in ACTIVATIONS and "\n" not in str(caught.value)
    with pytest.raises(InvalidInput, match=message):
        Elementwise(record)


def test_a_record_is_registered_under_its_own_name():
    with pytest.raises(InvalidInput, match=r"entered under its name.*'isru'"):
        ACTIVATIONS["isrlu"] = ISRU
    with pytest.raises(InvalidInput, match="beta must be left at 1 unless activation is softplus"):
        validate({"model": {"activation": "silu", "beta": 2}})
