"""Affine maps whose entries are not stored but computed, with bounds on the errors of these.

A mean over nine pixels, a division by a standard deviation and the product of two matrices are no
float64 numbers. The exact entry of such a map lies within an error of the computed one; where the
error is 0 the computed entry is exact, and an entry that is 0 with error 0 is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycrt.verify.norms import frobenius, gamma

# More than an operation in float64 loses to underflow.
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How far the computed `weight` and `bias` of a map may be from the exact ones, entry by entry.

    `offsets` are the sizes of all terms that are summed for the bias. In another arithmetic entries
    have at most `rounds` roundings, and for inputs of size 1 no intermediate result, nor the
    inverse of a divisor, is larger than `gain`.
    """

    weight: np.ndarray
    bias: np.ndarray
    offsets: np.ndarray
    rounds: int
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Affine:
    """x -> W x + b with the `weight` W (outputs, inputs), or the diagonal of W alone (features,),
    and the `bias` b (outputs,); without `computed` both are exact."""

    weight: np.ndarray
    bias: np.ndarray
    computed: Computed | None = None

    @property
    def outputs(self) -> int:
        return len(self.bias)

    @property
    def inputs(self) -> int:
        return self.weight.shape[-1]

    def after(self, before: Affine) -> Affine:
        """This map of the result of `before`."""
        with np.errstate(all="ignore"):  # What is not finite is refused as a whole.
            return self._after(before)

    def _after(self, before: Affine) -> Affine:
        v, c, w, b = self.weight, self.bias, before.weight, before.bias
        given, own = before.known(), self.known()
        terms = 1 if 1 in (v.ndim, w.ndim) else v.shape[-1]
        sizes, sums = _product(np.abs(v), np.abs(w)), _apply(np.abs(v), np.abs(b))
        reads = _product(_reads(v, own.weight), _reads(w, given.weight)) > 0
        spread = gamma(terms + 4) * sizes
        spread = spread + _product(np.abs(v), given.weight)
        spread = spread + _product(own.weight, np.abs(w) + given.weight)
        offsets = _apply(np.abs(v) + own.weight, given.offsets) + own.offsets
        moved = gamma(v.shape[-1] + 4) * (sums + finite(np.abs(c))) + own.bias
        moved = moved + _apply(np.abs(v), given.bias)
        moved = moved + _apply(own.weight, np.abs(b) + given.bias)
        room = 1 + 2 * gamma(v.shape[-1] + 8)
        return Affine(
            weight=_product(v, w),
            bias=_apply(v, b) + c,
            computed=Computed(
                weight=np.where(reads, spread * room + (terms + 1) * _TINY, 0.0),
                bias=np.where(np.isinf(c), 0.0, moved * room + (v.shape[-1] + 1) * _TINY),
                offsets=offsets * room,
                rounds=given.rounds + own.rounds + 4,
                gain=given.gain * own.gain * (1 + frobenius(w) + frobenius(b)) * (1 + frobenius(v)),
            ),
        )

    def known(self) -> Computed:
        """The errors, zeros where all is exact."""
        if self.computed is not None:
            return self.computed
        return Computed(
            weight=np.zeros_like(self.weight),
            bias=np.zeros_like(self.bias),
            offsets=finite(np.abs(self.bias)),
            rounds=0,
        )

    def full(self) -> Affine:
        """The same map with its whole matrix."""
        if self.weight.ndim == 2:
            return self
        made = self.known()
        computed = Computed(
            weight=np.diag(made.weight),
            bias=made.bias,
            offsets=made.offsets,
            rounds=made.rounds,
            gain=made.gain,
        )
        return Affine(
            weight=np.diag(self.weight),
            bias=self.bias,
            computed=None if self.computed is None else computed,
        )


def rescaled(
    factor: np.ndarray,
    divisor: np.ndarray,
    mean: np.ndarray,
    bias: np.ndarray,
    *,
    rounds: int,
    divisors: Sequence[np.ndarray] = (),
) -> Affine:
    """`factor (x - mean) / divisor + bias`, feature by feature; `divisor` has at most `rounds`
    roundings of its own. Another arithmetic may divide by the other `divisors` too."""
    with np.errstate(all="ignore"):
        scale = factor / divisor
        moved = mean * scale
        offsets = np.abs(moved) + np.abs(bias)
        error = gamma(rounds + 4)
        inverses = (1 / each for each in (divisor, *divisors))
        extremes = [np.abs(part).max() for part in (factor, divisor, *inverses, mean, bias)]
        return Affine(
            weight=scale,
            bias=bias - moved,
            computed=Computed(
                weight=np.where(factor != 0, error * np.abs(scale) + _TINY, 0.0),
                bias=np.where(mean == 0, 0.0, error * offsets * (1 + error) + _TINY),
                offsets=offsets * (1 + error) + _TINY,
                rounds=rounds + 4,
                gain=float(max(1.0, *extremes)),
            ),
        )


def averaged(matrix: np.ndarray, pixels: int) -> Affine:
    """Sums of inputs, by a `matrix` of ones and zeros, over `pixels`; exact for a power of two."""
    weight, bias = matrix / pixels, np.zeros(len(matrix))
    if math.frexp(pixels)[0] == 0.5:
        return Affine(weight=weight, bias=bias)
    error = Computed(weight=gamma(2) * weight, bias=bias, offsets=bias, rounds=1)
    return Affine(weight=weight, bias=bias, computed=error)


def _product(v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """V W, of matrices or the diagonals of such."""
    if v.ndim == 1 and w.ndim == 2:
        return v[:, None] * w
    return v @ w if v.ndim == w.ndim == 2 else v * w


def _apply(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    return v * x if v.ndim == 1 else v @ x


def _reads(weight: np.ndarray, error: np.ndarray) -> np.ndarray:
    """1 where an entry may differ from 0."""
    return ((weight != 0) | (error != 0)).astype(np.float32)


def finite(sizes: np.ndarray) -> np.ndarray:
    """0 in place of the infinite offset of a class that is masked."""
    return np.where(np.isinf(sizes), 0.0, sizes)
