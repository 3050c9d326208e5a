"""From a margin's value and gradient at one point to a radius, with all rounding subtracted.

Let f be a margin with `Hess f >= -m I`, value v and gradient g at x0 + u. By Taylor's theorem, for
x' = x0 + d,

    f(x') >= v + g.(d - u) - m/2 |d - u|^2
          >= [v - g.u - m/2 |u|^2] - |g + m u| |d| - m/2 |d|^2.

The right-hand side, a `Floor`, falls with |d| and is positive exactly for |d| below the positive
root of a quadratic. Computed values that are off, v by at most e and g by at most h, cost
`e + h |d - u| <= e + h |u| + h |d|`: they lower the constant and steepen the slope. Or, for any
b > 0, `e + h |d - u| <= e + h^2 / (2 b) + b/2 |d - u|^2`: they lower the constant and raise m by b,
which costs less where x0 + d comes near x0 + u. The better of the two is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycrt.activations import NUMPY
from raycrt.verify.model import Model
from raycrt.verify.norms import UNIT, frobenius, gamma, norm_upper

FLOAT32_UNIT = 2.0**-24
# The smallest normal number of the arithmetic of each unit: what a sum may lose to underflow for
# each of its terms, whether it is flushed to zero or not.
SMALLEST = {UNIT: 2.0**-1022, FLOAT32_UNIT: 2.0**-126}
# In float32 no number may be larger than this on the way; infinity is further away by far.
_LARGEST_FLOAT32 = 2.0**126
# A length may be off by this where squares of its entries underflow.
SHORT = 1e-146
# Library functions (exp, tanh, erf, ...) are assumed right to 4 units in the last place. Then each
# activation's value is off by at most this many units of |s(z)| + |z| ...
_VALUE_UNITS = 16
# ... and its slope by as many units of max(1, sup|s'|): the worst is z (1 - sigmoid(z)) in SiLU,
# where 1 - sigmoid(z) is off by 4 units and not yet zero up to z = 37.
_SLOPE_UNITS = 256
# From here the slope of an affine bound is taken: beyond what it is at 0, before it overflows.
_LENGTHS = 2.0 ** np.arange(0, 400, 40)
# The bounds themselves are sums of a few thousand positive terms.
ROOM = 1 + 1e-9


@dataclass(frozen=True, kw_only=True)
class Floor:
    """`f(x0 + d) >= constant - slope |d| - m/2 |d|^2` for every d; arrays of one shape."""

    constant: np.ndarray
    slope: np.ndarray
    m: np.ndarray

    def radius(self) -> np.ndarray:
        """A radius with f > 0 for smaller |d|; 0 where the floor proves nothing or is NaN."""
        with np.errstate(all="ignore"):
            root = np.sqrt(self.slope**2 + 2 * self.m * self.constant)
            radius = 2 * self.constant / (self.slope + root) * (1 - 16 * UNIT)
            return np.where((self.constant > 0) & (radius > 0), radius, 0.0)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """A-priori bounds on the rounding errors of margins and gradients (Higham, ch. 3).

    A product with n terms, summed in any order, is off by at most gamma(n) times the product of the
    absolute values; terms that are zero are exact and not counted. What enters a layer wrong grows
    by its spectral norm, `ROOM` covers the rest. Of each layer W, `spectral` >= |W|, `absolute`
    >= the spectral norm of W's absolute values, `bias` >= |b|; no row and no column of W has more
    entries than `in_row` and `in_column` that are not zero. The last layer's b is not counted here:
    each number of it is in one logit alone, see `offsets`.
    """

    model: Model
    spectral: tuple[float, ...]
    absolute: tuple[float, ...]
    bias: tuple[float, ...]
    in_row: tuple[int, ...]
    in_column: tuple[int, ...]

    @staticmethod
    def of(model: Model) -> Errors:
        return Errors(
            model=model,
            spectral=tuple(norm_upper(w) for w in model.weights),
            absolute=tuple(_absolute_norm(w) for w in model.weights),
            bias=(*(frobenius(b) for b in model.biases[:-1]), 0.0),
            in_row=tuple(int(np.count_nonzero(w, axis=1).max()) for w in model.weights),
            in_column=tuple(int(np.count_nonzero(w, axis=0).max()) for w in model.weights),
        )

    def margin(self, length: np.ndarray, unit: float = UNIT) -> np.ndarray:
        """>= |computed margin - exact margin| at inputs of 2-norm `length`, but for what `offsets`
        adds; affine in `length`."""
        last, size = self.layers(length, unit)[-1]
        # Two logits, each off by a component of `last`, and their subtraction.
        return math.sqrt(2) * (last + unit * (size + last) + SMALLEST[unit]) * ROOM

    def offsets(self, unit: float = UNIT) -> np.ndarray:
        """What the last layer's b adds to `margin` of class y against t, (classes, classes)."""
        size = np.where(self.model.masked, 0.0, np.abs(self.model.biases[-1]))
        # In either logit, and in their subtraction.
        rounds = gamma(self.in_row[-1] + 2, unit) + 2 * unit
        return rounds * (size[:, None] + size) * ROOM

    def fits_float32(self, length: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Whether no number overflows in float32, weights included, at inputs of norm `length`,
        but logits of other classes than `label` downwards: those only get further away."""
        # A sharp softplus multiplies its argument by 4 sup s'' before anything else.
        most = _LARGEST_FLOAT32 / max(1.0, 4 * self.model.curvatures.bound)
        layers = self.layers(length, FLOAT32_UNIT)
        largest = np.max([error + size for error, size in layers], axis=0)
        last = self.model.biases[-1]
        own = np.maximum(np.abs(last[label]), float(last.max()))
        return np.maximum(np.maximum(largest, own), max(self.spectral)) < most

    def gradient(self, length: np.ndarray) -> np.ndarray:
        """>= |computed gradient of a margin - exact gradient|_2 at inputs of 2-norm `length`."""
        steepest = self.model.slopes.bound
        layers = self.layers(length, UNIT)
        size = math.sqrt(2) * self.spectral[-1]
        error = UNIT * size * np.ones_like(length)
        for k in range(self.model.depth - 2, -1, -1):
            # Slopes are off by `shaken` in the 2-norm, and each by `own` for itself.
            shaken = self.model.curvatures.bound * layers[k][0]
            own = _SLOPE_UNITS * UNIT * max(1.0, steepest)
            # Above the last matrix no entry of the gradient is larger than two entries of that.
            entry = size if k < self.model.depth - 2 else 2 * np.abs(self.model.weights[-1]).max()
            wrong = shaken * (entry + error) + own * (size + error)
            wrong = wrong + UNIT * (steepest + shaken + own) * (size + error)
            error = steepest * error + wrong
            size = steepest * size
            # Slopes, their products, and the sums of these may underflow.
            terms = (2 * self.in_column[k] + 4) * math.sqrt(max(self.model.weights[k].shape))
            lost = SMALLEST[UNIT] * terms * (1 + size + error)
            local = gamma(self.in_column[k]) * self.absolute[k] * (size + error)
            error = self.spectral[k] * (error + lost) + local + lost
            size = self.spectral[k] * size
        return error * ROOM

    def layers(self, length: np.ndarray, unit: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each layer bounds of |computed z - z|_2 and of |z|_2; of the last without its b."""
        steepest = self.model.slopes.bound
        resting = abs(float(self.model.activation.value(0.0, NUMPY)))
        size, error = length, np.zeros_like(length)
        found = []
        for k, weight in enumerate(self.model.weights):
            # The products, the bias, and, in less than float64, the stored weight itself.
            local = gamma(self.in_row[k] + 2, unit)
            local = local * (self.absolute[k] * (size + error) + self.bias[k])
            # Products, their sums, and the stored weight itself may underflow.
            lost = SMALLEST[unit] * (2 * self.in_row[k] + 2) * math.sqrt(len(weight))
            local = local + lost * (1 + size + error)
            error = self.spectral[k] * error + local
            size = self.spectral[k] * size + self.bias[k]
            found.append((error, size))
            value = steepest * size + resting * math.sqrt(len(weight))
            local = _VALUE_UNITS * unit * (value + size + 2 * error)
            local = local + 4 * SMALLEST[unit] * math.sqrt(len(weight))
            error, size = steepest * error + local, value
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
    of a coarser arithmetic, the floor lies under the margin as computed in that arithmetic. With
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
    # x0 + u is rounded too: the point used lies at u + e, |e| <= moved. x0 itself is not.
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
        # Affine in |x'| <= |x0| + |d| and >= 0 at 0: nowhere steeper than the way up to any length.
        lowered = lowered + errors.margin(length * ROOM, deployed)
        steeper = steeper + np.nanmin(errors.margin(_LENGTHS, deployed) / _LENGTHS)
    return Floor(constant=constant - lowered * ROOM, slope=norm(tilt) + steeper * ROOM, m=m)


def witness_radius(
    errors: Errors, *, length: np.ndarray, gradient: np.ndarray, u: np.ndarray, **values: Any
) -> np.ndarray:
    """The radius (...) that points u prove by the better of two floors; arguments as of `floor`."""
    plain = floor(errors, length=length, gradient=gradient, u=u, **values)
    radius, m = plain.radius(), values["m"]
    with np.errstate(all="ignore"):
        # Where the ball ends, and what a point on the boundary has to spare.
        tilt = gradient + m[..., None] * u
        end = -tilt * (radius / norm(tilt))[..., None]
        off = errors.gradient((length + norm(u)) * ROOM)
        spare = norm(gradient) / radius - m
        inflation = np.minimum(off / norm(end - u), np.where(spare > 0, spare / 2, np.inf))
        inflation = np.where(np.isfinite(inflation) & (inflation > 0), inflation, 1.0)
        bent = floor(errors, length=length, gradient=gradient, u=u, inflation=inflation, **values)
    return np.maximum(radius, bent.radius())


def _absolute_norm(matrix: np.ndarray) -> float:
    """Of the absolute values the Frobenius norm, or Schur's `sqrt(row sum * column sum)`."""
    absolute = np.abs(matrix)
    schur = math.sqrt(float(absolute.sum(1).max() * absolute.sum(0).max()))
    return min(frobenius(matrix), schur * ROOM)


def norm(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
