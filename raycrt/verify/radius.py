"""Radius proved from a margin's value and gradient at one point, with all rounding subtracted.

Let f be a margin with `Hess f >= -m I`, value v and gradient g at x0 + u. By Taylor's theorem, for
x' = x0 + d,

    f(x') >= v + g.(d - u) - m/2 |d - u|^2
          >= [v - g.u - m/2 |u|^2] - |g + m u| |d| - m/2 |d|^2.

The right-hand side, a `Floor`, falls with |d| and is positive exactly for |d| below the positive
root of a quadratic. Errors of at most e in v and h in g lower it by at most `e + h |d - u| <= e +
h |u| + h |d|`: they lower the constant and steepen the slope. Or, for any b > 0, `e + h |d - u| <=
e + h^2 / (2 b) + b/2 |d - u|^2`: they lower the constant and raise m by b, which costs less where
x0 + d comes near x0 + u. The larger of the two radii is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from raycrt.verify.model import Model
from raycrt.verify.norms import UNIT, absolute_norm, frobenius, gamma, norm_upper

FLOAT32_UNIT = 2.0**-24
# The smallest normal number of the arithmetic of each unit: the most that a sum loses to underflow
# per term, whether subnormal numbers are flushed to zero or not.
SMALLEST = {UNIT: 2.0**-1022, FLOAT32_UNIT: 2.0**-126}
# Limit on every intermediate float32 number, well below overflow.
_LARGEST_FLOAT32 = 2.0**126
# Error of a 2-norm where squares of the entries underflow.
SHORT = 1e-146
# Library functions (exp, tanh, erf, ...) are assumed accurate to 4 units in the last place. Then
# the error of each activation's value is at most this many units of |s(z)| + |z| ...
VALUE_UNITS = 16
# ... and that of its slope this many units of max(1, sup|s'|): the worst case is z (1 - sigmoid(z))
# in SiLU, where 1 - sigmoid(z) has an error of 4 units and is nonzero up to z = 37.
_SLOPE_UNITS = 256
# Lengths at which an affine bound is evaluated for its slope: its value at 0 is negligible at some,
# and it does not overflow.
_LENGTHS = 2.0 ** np.arange(0, 400, 40)
# Covers the rounding of the bounds themselves, sums of a few thousand positive terms.
ROOM = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Floor:
    """`f(x0 + d) >= constant - slope |d| - m/2 |d|^2` for every d; arrays of one shape."""

    constant: np.ndarray
    slope: np.ndarray
    m: np.ndarray

    def radius(self) -> np.ndarray:
        """Radius such that f > 0 for smaller |d|; 0 where the floor proves nothing or is NaN."""
        with np.errstate(all="ignore"):
            root = np.sqrt(self.slope**2 + 2 * self.m * self.constant)
            radius = 2 * self.constant / (self.slope + root) * (1 - 16 * UNIT)
            return np.where((self.constant > 0) & (radius > 0), radius, 0.0)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """A-priori bounds on the rounding errors of margins and gradients (Higham, ch. 3).

    A product with n terms, summed in any order, has an error of at most gamma(n) times the product
    of the absolute values; terms that are zero are exact and not counted. A layer multiplies the
    error of its input by its spectral norm at most, `ROOM` covers the rest. For each layer W,
    `spectral` >= |W|, `absolute` >= the spectral norm of W's absolute values, `bias` >= |b|; rows
    of W have at most `in_row` and columns at most `in_column` nonzero entries, or that many
    roundings. `loose` and `moved` bound the errors of a W and b that are computed from stored
    numbers. The last layer's b is not counted here, as each of its entries affects one logit only:
    see `offsets`. Layers with nothing between them multiply an error by the norm of their product:
    `joined` >= those of the joined model, and `peak` >= the entries of a margin's gradient in the
    last features that an activation makes.
    """

    model: Model
    spectral: tuple[float, ...]
    absolute: tuple[float, ...]
    bias: tuple[float, ...]
    in_row: tuple[int, ...]
    in_column: tuple[int, ...]
    loose: tuple[float, ...]
    moved: tuple[float, ...]
    joined: tuple[float, ...]
    peak: float

    @staticmethod
    def of(model: Model) -> Errors:
        spectral = tuple(norm_upper(w) + model.loose(k) for k, w in enumerate(model.weights))
        return Errors(
            model=model,
            spectral=spectral,
            absolute=tuple(absolute_norm(model.largest(k)) for k in range(model.depth)),
            bias=(*(frobenius(_offsets(model, k)) for k in range(model.depth - 1)), 0.0),
            in_row=tuple(_terms(model, k, 1) for k in range(model.depth)),
            in_column=tuple(_terms(model, k, 0) for k in range(model.depth)),
            loose=tuple(model.loose(k) for k in range(model.depth)),
            moved=(*(frobenius(model.bias_error(k)) for k in range(model.depth - 1)), 0.0),
            joined=_joined(model, spectral),
            # A difference of two entries of the matrix that makes the logits of these.
            peak=2 * float(model.joined.largest(model.joined.depth - 1).max()),
        )

    def margin(self, length: np.ndarray, unit: float = UNIT) -> np.ndarray:
        """Bound on |computed - exact margin| at inputs of 2-norm `length` without `offsets`;
        affine in `length`."""
        last, size = self.layers(length, unit)[-1]
        # The errors of two logits, two entries of a vector of norm `last`, and of the subtraction.
        return math.sqrt(2) * (last + unit * (size + last) + SMALLEST[unit]) * ROOM

    def offsets(self, unit: float = UNIT) -> np.ndarray:
        """Error that the last layer's b adds to the margin of y against t, (classes, classes)."""
        last = self.model.depth - 1
        size = np.where(self.model.masked, 0.0, _offsets(self.model, last))
        # In both logits and in their subtraction.
        rounds = gamma(self.in_row[-1] + 2, unit) + 2 * unit
        lost = rounds * size + self.model.bias_error(last)
        return (lost[:, None] + lost) * ROOM

    def fits_float32(self, length: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Whether no number, weights included, overflows in float32 at inputs of norm `length`.

        Logits of classes other than `label` may overflow to -inf: that only increases the margin.
        """
        # A sharp softplus first multiplies its argument by 4 sup s''.
        sharpest = max(hidden.curvatures.bound for hidden in self.model.hidden)
        most = _LARGEST_FLOAT32 / max(1.0, 4 * sharpest)
        layers = self.layers(length, FLOAT32_UNIT)
        largest = np.max([error + size for error, size in layers], axis=0)
        # What a layer is computed from is so far from underflow that it keeps all its digits.
        gains = max((made.gain for made in self.model.computed.values()), default=0.0)
        largest = np.maximum(largest, gains * np.maximum(2.0**30, 1 + largest + length))
        last = self.model.biases[-1]
        own = np.maximum(np.abs(last[label]), float(last.max()))
        return np.maximum(np.maximum(largest, own), max(self.spectral)) < most

    def gradient(self, length: np.ndarray) -> np.ndarray:
        """Bound on |computed - exact gradient of a margin|_2 at inputs of 2-norm `length`."""
        layers = self.layers(length, UNIT)
        size = math.sqrt(2) * self.spectral[-1]
        error = (UNIT * size + math.sqrt(2) * self.loose[-1]) * np.ones_like(length)
        joined = reversed(self.joined)
        # What came into the layers with nothing between them, and the error made in these.
        nothing = np.zeros_like(length)
        given, own, entry = (math.sqrt(2), nothing), error, self.peak
        for k in range(self.model.depth - 2, -1, -1):
            if k not in self.model.joints:
                together = next(joined)
                size, error = together * given[0], together * given[1] + own
                # Slopes have errors of `inherited` from z, in the 2-norm, and of `local` each.
                steepest = self.model.hidden[k].slopes.bound
                inherited = self.model.hidden[k].curvatures.bound * layers[k][0]
                local = _SLOPE_UNITS * UNIT * max(1.0, steepest)
                added = inherited * (min(entry, size) + error) + local * (size + error)
                added = added + UNIT * (steepest + inherited + local) * (size + error)
                error = steepest * error + added
                size = steepest * size
                given, own, entry = (size, error), nothing, math.inf
            # Slopes, their products, and the sums of these may underflow.
            terms = (2 * self.in_column[k] + 4) * math.sqrt(max(self.model.weights[k].shape))
            lost = SMALLEST[UNIT] * terms * (1 + size + error)
            made = (gamma(self.in_column[k]) * self.absolute[k] + self.loose[k]) * (size + error)
            made = self.spectral[k] * lost + made + lost
            error, own = self.spectral[k] * error + made, self.spectral[k] * own + made
            size = self.spectral[k] * size
        return (next(joined) * given[1] + own) * ROOM

    def layers(self, length: np.ndarray, unit: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Bounds on |computed z - z|_2 and |z|_2 for each layer, for the last one without its b."""
        size, error = length, np.zeros_like(length)
        found, joined = [], iter(self.joined)
        # What came into the layers with nothing between them, and what these add to it.
        given, own, shift = (size, error), np.zeros_like(length), 0.0
        for k, weight in enumerate(self.model.weights):
            # Rounding of the products, the bias and, below float64, the stored weight itself.
            local = gamma(self.in_row[k] + 2, unit)
            local = local * (self.absolute[k] * (size + error) + self.bias[k])
            # Products, their sums, and the stored weight itself may underflow.
            lost = SMALLEST[unit] * (2 * self.in_row[k] + 2) * math.sqrt(len(weight))
            lost = lost * self.model.gain(k)
            local = local + lost * (1 + size + error)
            local = local + self.loose[k] * (size + error) + self.moved[k]
            error, own = self.spectral[k] * error + local, self.spectral[k] * own + local
            size = self.spectral[k] * size + self.bias[k]
            shift = self.spectral[k] * shift + self.bias[k]
            if k not in self.model.joints:
                together = next(joined)
                size, error = together * given[0] + shift, together * given[1] + own
            found.append((error, size))
            if k == self.model.depth - 1:
                break
            if k in self.model.joints:  # What is passed on is not rounded.
                continue
            steepest = self.model.hidden[k].slopes.bound
            value = steepest * size + self.model.hidden[k].at_zero
            local = VALUE_UNITS * unit * (value + size + 2 * error)
            local = local + 4 * SMALLEST[unit] * math.sqrt(len(weight))
            error, size = steepest * error + local, value
            given, own, shift = (size, error), np.zeros_like(length), 0.0
        return found


def floor(
    errors: Errors,
    *,
    length: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    m: np.ndarray,
    u: np.ndarray | None = None,
    deployed: float | None = None,
    inflation: np.ndarray | None = None,
) -> Floor:
    """The floor of margins with `value` and `m` (...) and `gradient` and `u` (..., features).

    `length` (...) is |x0|. Without `u` the point is x0 itself. With `deployed`, the unit roundoff
    of a coarser arithmetic, the floor lies below the margin as computed in that arithmetic. With
    `inflation` b (...) > 0 the gradient's error lowers the constant and raises m.
    """
    features = gradient.shape[-1]
    if inflation is not None:
        m = (m + inflation) * (1 + 2 * UNIT)
    if u is None:
        shift, dot, tilt = np.zeros_like(value), np.zeros_like(value), gradient
    else:
        shift, dot = norm(u), (gradient * u).sum(-1)
        tilt = gradient + m[..., None] * u
    steepness, reach = norm(gradient), (length + shift) * ROOM
    gradient_error = errors.gradient(reach)
    # x0 + u is rounded too: the point used is x0 + u + e, |e| <= moved. x0 itself is exact.
    moved = np.zeros_like(reach) if u is None else UNIT * reach
    terms = gamma(features + 16)
    constant = value - dot - m / 2 * shift**2
    rounding = terms * (np.abs(value) + steepness * shift + m * shift**2)
    rounding = rounding + moved * (steepness + m * (shift + moved))
    lowered = errors.margin(reach) + rounding
    steeper = terms * (steepness + m * shift) + m * moved + SHORT
    if inflation is None:
        lowered, steeper = lowered + gradient_error * shift, steeper + gradient_error
    else:
        lowered = lowered + gradient_error * (gradient_error / inflation) / 2
    if deployed is not None:
        # Affine in |x'| <= |x0| + |d| and >= 0 at 0: its slope is <= its value over any length.
        lowered = lowered + errors.margin(length * ROOM, deployed)
        steeper = steeper + np.nanmin(errors.margin(_LENGTHS, deployed) / _LENGTHS)
    return Floor(constant=constant - lowered * ROOM, slope=norm(tilt) + steeper * ROOM, m=m)


def witness_radius(
    errors: Errors, *, length: np.ndarray, gradient: np.ndarray, u: np.ndarray, **values: Any
) -> np.ndarray:
    """The larger radius (...) that two floors prove from points u; arguments as for `floor`."""
    plain = floor(errors, length=length, gradient=gradient, u=u, **values)
    radius, m = plain.radius(), values["m"]
    with np.errstate(all="ignore"):
        # The boundary point where the floor is lowest, and the curvature that may be added there.
        tilt = gradient + m[..., None] * u
        end = -tilt * (radius / norm(tilt))[..., None]
        error = errors.gradient((length + norm(u)) * ROOM)
        spare = norm(gradient) / radius - m
        inflation = np.minimum(error / norm(end - u), np.where(spare > 0, spare / 2, np.inf))
        inflation = np.where(np.isfinite(inflation) & (inflation > 0), inflation, 1.0)
        other = floor(errors, length=length, gradient=gradient, u=u, inflation=inflation, **values)
    return np.maximum(radius, other.radius())


def _joined(model: Model, spectral: tuple[float, ...]) -> tuple[float, ...]:
    """Bounds on the norms of the matrices of the joined model, from those of the model's own."""
    ends = [k for k in range(model.depth) if k not in model.joints]
    found = []
    for number, (before, end) in enumerate(pairwise([-1, *ends])):
        most = math.prod(spectral[before + 1 : end + 1])
        if end - before > 1:
            whole = norm_upper(model.joined.weights[number]) + model.joined.loose(number)
            most = min(most * ROOM, whole)
        found.append(most)
    return tuple(found)


def _offsets(model: Model, k: int) -> np.ndarray:
    """The sizes of all terms that are summed for the offset of layer k."""
    made = model.computed.get(k)
    return np.abs(model.biases[k]) if made is None else made.offsets + made.bias


def _terms(model: Model, k: int, axis: int) -> int:
    """The roundings of an entry of a product with W_k (axis 1) or its transpose (axis 0)."""
    made = model.computed.get(k)
    nonzero = int(np.count_nonzero(model.largest(k), axis=axis).max())
    return nonzero if made is None else nonzero + made.rounds


def norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
