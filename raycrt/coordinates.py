"""The directions in which a first layer acts: coordinates for the solver, and bounds of lengths.

Trained first layers act mostly along few directions of the input. Points near an image are looked
for in the coordinates w of `u = Q w`, Q with orthonormal columns, at a fraction of the price of
gradients in all pixels. Nothing that is proved depends on how much of the layer Q catches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.affine import DENSE_ENTRIES, AffineMap
from raycrt.rounding import ErrorModel, length_upper
from raycrt.spectral import eigenvalue_upper, gamma

# Directions that the solver works in, and the first of them that lengths are bounded by.
_DIRECTIONS, _LEADING = 64, 16
_SLACK = 1 + 1e-9


class Pixels:
    """The inputs themselves as coordinates: for first layers whose matrix is not formed."""

    def __init__(self, layer: AffineMap) -> None:
        self.layer = layer

    @property
    def size(self) -> int:
        return self.layer.in_features

    def image(self, w: Tensor) -> Tensor:
        """W_1 u (n, width) of coordinates w (n, size)."""
        return self.layer.linear(w)

    def pull(self, v: Tensor) -> Tensor:
        """The gradient in the coordinates (n, size), from one in z_1 (n, width)."""
        return self.layer.transpose(v)

    def lift(self, w: Tensor) -> Tensor:
        """The points u (n, features)."""
        return w

    def length_upper(self, v: Tensor, errors: ErrorModel) -> Tensor:
        """Proved bounds, float64 (n,), of |W_1^T v| for v (n, width) as it stands."""
        computed, given = length_upper(self.layer.transpose(v)), length_upper(v)
        return computed + errors.through_layer(0, torch.zeros_like(given), given, v.dtype)


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Coordinates along the first right singular vectors of W_1.

    `basis` is Q^T (size, features) and `action` W_1 Q (width, size), in the solver's type. Always
    `|W_1^T v|^2 <= |L^T v|^2 + (rest |v|)^2` with L the `leading` (width, k), which are the first
    left singular vectors times `sqrt(s^2 - rest^2)`: proved, in float64, by a Cholesky
    factorisation for the L that is stored.
    """

    basis: Tensor
    action: Tensor
    leading: Tensor
    rest: float

    @staticmethod
    def of(layer: AffineMap, dtype: torch.dtype) -> Directions:
        """`layer` is in float64 and small enough to be formed."""
        matrix = layer.matrix()
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        next_size = sizes[_LEADING] if len(sizes) > _LEADING else sizes.new_zeros(())
        kept = sizes[:_LEADING].square() - next_size.square()
        leading = (left[:, :_LEADING] * kept.clamp(min=0).sqrt()).to(dtype)
        basis = right[:_DIRECTIONS]
        return Directions(
            basis=basis.to(dtype),
            action=(matrix @ basis.T).to(dtype),
            leading=leading,
            rest=_rest_upper(layer, leading.double()),
        )

    @property
    def size(self) -> int:
        return len(self.basis)

    def image(self, w: Tensor) -> Tensor:
        return w @ self.action.T

    def pull(self, v: Tensor) -> Tensor:
        return v @ self.action

    def lift(self, w: Tensor) -> Tensor:
        return w @ self.basis

    def length_upper(self, v: Tensor, errors: ErrorModel) -> Tensor:
        number = torch.finfo(v.dtype)
        length = length_upper(v)
        # A product with the leading columns rounds by gamma |L|_F |v| and loses to underflow.
        terms = len(self.leading) + 2
        size = float(torch.linalg.matrix_norm(self.leading.double())) * _SLACK
        share = terms * number.eps / (1 - terms * number.eps)
        off = share * size * length + terms * number.smallest_normal * self.leading.shape[1]
        ahead = length_upper(v @ self.leading) + off
        return (ahead.square() + (self.rest * length).square()).sqrt() * _SLACK


Coordinates = Pixels | Directions


def coordinates(exact: AffineMap, fast: AffineMap) -> Coordinates:
    """Those of a first layer, given in float64 and in the type that the solver computes in."""
    if exact.dense and exact.out_features**2 <= DENSE_ENTRIES:
        return Directions.of(exact, fast.offset().dtype)
    return Pixels(fast)


def _rest_upper(layer: AffineMap, leading: Tensor) -> float:
    """A number r with `|W^T v|^2 <= |L^T v|^2 + (r |v|)^2` for every v."""
    matrix = layer.matrix()
    mass = float(torch.linalg.matrix_norm(matrix) ** 2 + torch.linalg.matrix_norm(leading) ** 2)
    # W W^T - L L^T as computed, and what forming it can have added.
    rounding = gamma(max(matrix.shape) + leading.shape[1] + 4) * mass * _SLACK
    square = max(0.0, eigenvalue_upper(matrix @ matrix.T - leading @ leading.T)) + rounding
    error = layer.matrix_error_upper()
    if error > 0:
        # |W^T v| <= |M^T v| + e |v|, squared, with |M| <= |W| + e.
        square += error * (2 * layer.norm_upper() + 3 * error)
    return math.sqrt(square) * _SLACK
