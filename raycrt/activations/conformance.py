"""A check, by sampling, that an activation satisfies what every bound assumes of it.

Missing critical points and wrong derivatives contradict the record's own ranges: a value computed
at a point must lie in the range on every interval around it, and a difference quotient of a
function in the range of its derivative between the two points.
"""

from __future__ import annotations

import numpy as np

from raycrt.activations.record import NUMPY, Activation, Range, slope_error, value_error
from raycrt.errors import InvalidInput, require

# Proofs leave room for underflow in products with slopes below this.
_STEEPEST = 2.0
# Each is the derivative of the one before.
_PARTS = ("value", "slope", "curvature")
# The largest |z| that is sampled, and how close to its limit a derivative must be there.
_FAR, _AT_LIMIT = 2.0**30, 2.0**-20
# Half the width, in samples, of the intervals around a sample.
_WIDTHS = (1, 16)


def check(record: Activation) -> None:
    """Raise `InvalidInput` unless samples of `record` agree with what it states.

    It checks that the formulas take arrays and give finite numbers; that |s'| < 2; that s' and s''
    are the derivatives of s and s', stay in their ranges and reach their limits; that every
    critical point that widens a range is listed; and that the float32 rounding errors of s and s'
    are no larger than `bounds.rounding` assumes.
    """
    positive = np.concatenate([np.geomspace(2.0**-30, _FAR, 64 * 60 + 1), np.arange(1, 2**12) / 32])
    z = np.unique(np.concatenate([-positive, [0.0], positive]))
    eps = float(np.finfo(z.dtype).eps)
    with np.errstate(all="ignore"):
        value, slope, curvature = (_sampled(record, part, z) for part in _PARTS)
        require(
            record.slope_bound < _STEEPEST,
            f"|slope| < {_STEEPEST} everywhere, as proofs assume",
            activation=record.name,
            slope_bound=record.slope_bound,
        )
        _check_limits(record, "slope", slope, record.slope_limits)
        _check_limits(record, "curvature", curvature, (0.0, 0.0))
        _check_range(record, "slope", z, slope)
        _check_range(record, "curvature", z, curvature)
        _check_derivative(record, "value", z, value, value_error(np.abs(value), np.abs(z), eps))
        _check_derivative(record, "slope", z, slope, slope_error(record.slope_bound, eps) + 0 * z)
        _check_rounding(record, z)


def _sampled(record: Activation, part: str, z: np.ndarray) -> np.ndarray:
    try:
        found = np.asarray(getattr(record, part)(z, NUMPY))
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{part} of activation {record.name!r} must be made of +, -, *, /, ** and xp.exp, "
            f"xp.tanh, xp.arctan, xp.erf, xp.sigmoid and xp.softplus, but got: {error}"
        ) from None
    require(
        found.shape == z.shape and bool(np.isfinite(found).all()),
        f"{part} is a finite number for each z",
        activation=record.name,
        shape=found.shape,
    )
    return found


def _check_limits(record: Activation, part: str, found: np.ndarray, limits: Range) -> None:
    for end, limit in ((0, limits[0]), (-1, limits[1])):
        require(
            abs(found[end] - limit) <= _AT_LIMIT,
            f"{part} approaches its limit at {'minus ' if end == 0 else ''}infinity",
            activation=record.name,
            limit=limit,
            found=float(found[end]),
        )


def _check_range(record: Activation, part: str, z: np.ndarray, found: np.ndarray) -> None:
    """Require that the value computed at a point lies in the range on intervals around it."""
    for width in _WIDTHS:
        low, high = getattr(record, f"{part}_range_on")(z[: -2 * width], z[2 * width :], NUMPY)
        middle = found[width:-width]
        worst = int(np.argmax(excess := np.maximum(low - middle, middle - high)))
        if excess[worst] > 0:
            raise InvalidInput(
                f"{part}_critical of activation {record.name!r} must list every point where "
                f"{part} has an extremum, but {part} is {middle[worst]:.6g} at "
                f"z = {z[worst + width]:.6g}, and the points listed put it between "
                f"{low[worst]:.6g} and {high[worst]:.6g}"
            )


def _check_derivative(
    record: Activation, part: str, z: np.ndarray, found: np.ndarray, error: np.ndarray
) -> None:
    """Require that each difference quotient of `part`, whose values `found` have the error bounds
    `error`, lies in the range of its derivative between the two points."""
    derivative = _PARTS[_PARTS.index(part) + 1]
    low, high = getattr(record, f"{derivative}_range_on")(z[:-1], z[1:], NUMPY)
    quotient = np.diff(found) / np.diff(z)
    slack = (error[1:] + error[:-1]) / np.diff(z) + 1e-15 * np.abs(quotient)
    worst = int(np.argmax(excess := np.maximum(low - quotient, quotient - high) - slack))
    if excess[worst] > 0:
        raise InvalidInput(
            f"{derivative} of activation {record.name!r} must be the derivative of {part}, but at "
            f"z = {z[worst]:.6g} the difference quotient of {part} is {quotient[worst]:.6g}, and "
            f"{derivative} is between {low[worst]:.6g} and {high[worst]:.6g}"
        )


def _check_rounding(record: Activation, z: np.ndarray) -> None:
    """Require that value and slope in float32 keep the error bounds, compared with float64."""
    number = np.finfo(np.float32)
    coarse = z.astype(np.float32)
    same = coarse.astype(z.dtype)
    for part in _PARTS[:2]:
        exact = _sampled(record, part, same)
        bound = (
            value_error(np.abs(exact), np.abs(same), float(number.eps))
            + 8 * float(number.smallest_normal)
            if part == "value"
            else slope_error(record.slope_bound, float(number.eps)) + 0 * same
        )
        error = np.abs(_sampled(record, part, coarse) - exact)
        worst = int(np.argmax(error - bound))
        if error[worst] > bound[worst]:
            raise InvalidInput(
                f"{part} of activation {record.name!r} must have a rounding error of at most "
                f"{bound[worst]:.3g} at z = {same[worst]:.6g} in float32, but got "
                f"{error[worst]:.3g}; use a formula without cancellation"
            )
