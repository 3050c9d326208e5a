"""The directions in which a first layer acts: coordinates for the solver, and bounds of lengths.

Trained first layers act mostly along few directions of the input. Points near an image are looked
for in the coordinates w of `u = Q w`, Q with orthonormal columns, at a fraction of the price of
gradients in all pixels. Nothing that is proved depends on how much of the layer Q catches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.affine import AffineMap
from raycrt.rounding import ErrorModel, root_upper, squares
from raycrt.spectral import eigenvalue_upper, gamma

# Left singular vectors, singular values and right singular vectors: the columns, falling, the rows.
SingularValues = tuple[Tensor, Tensor, Tensor]
# The fewest directions that the solver works in, and that lengths are bounded by.
_DIRECTIONS, _LEADING = 64, 16
# How loose the bounds of lengths of typical gradients may be, and the share of such a gradient that
# the solver's directions may miss.
_LOOSE, _MISSED = 1.05, 0.15
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

    def measure(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (n,) from which `length_upper` bounds the length of W_1^T v, of v (n, width)."""
        pulled = self.layer.transpose(v)
        return squares(v), squares(pulled)

    def length_upper(self, given: Tensor, pulled: Tensor, errors: ErrorModel) -> Tensor:
        """Proved bounds, float64, of the lengths |W_1^T v| of what was measured, v as it stood."""
        length = root_upper(given, self.layer.out_features)
        computed = root_upper(pulled, self.layer.in_features)
        off = errors.through_layer(0, torch.zeros_like(length), length, given.dtype)
        return computed + off


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
    leading_size: float
    rest: float

    @staticmethod
    def of(
        layer: AffineMap, singular: SingularValues, typical: Tensor, dtype: torch.dtype
    ) -> Directions:
        """`layer` is in float64 and small enough to be formed.

        There are as many directions as gradients `typical` (n, width) in z_1 ask for.
        """
        matrix = layer.matrix()
        left, sizes, right = singular
        count, size = _counts(singular, typical)
        next_size = sizes[count] if len(sizes) > count else sizes.new_zeros(())
        kept = sizes[:count].square() - next_size.square()
        leading = (left[:, :count] * kept.clamp(min=0).sqrt()).to(dtype)
        basis = right[:size]
        return Directions(
            basis=basis.to(dtype),
            action=(matrix @ basis.T).to(dtype),
            leading=leading,
            leading_size=float(torch.linalg.matrix_norm(leading.double())) * _SLACK,
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

    def measure(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return squares(v), squares(v @ self.leading)

    def length_upper(self, given: Tensor, pulled: Tensor, errors: ErrorModel) -> Tensor:
        number = torch.finfo(given.dtype)
        width, k = self.leading.shape
        length = root_upper(given, width)
        # A product with the leading columns rounds by gamma |L|_F |v| and loses to underflow.
        terms = width + 2
        share = terms * number.eps / (1 - terms * number.eps)
        off = share * self.leading_size * length + terms * number.smallest_normal * k
        ahead = root_upper(pulled, k) + off
        return (ahead.square() + (self.rest * length).square()).sqrt() * _SLACK


Coordinates = Pixels | Directions


def _counts(singular: SingularValues, typical: Tensor) -> tuple[int, int]:
    """How many directions bound lengths closely, and how many the solver should work in."""
    left, sizes, _ = singular
    along = (typical @ left).square()
    outside = typical.square().sum(1)
    pulled = along * sizes.square()
    whole = pulled.sum(1).clamp(min=torch.finfo(pulled.dtype).tiny)
    rank = len(sizes)

    def looseness(k: int) -> float:
        rest = sizes[k].square() if k < rank else 0.0
        bound = pulled[:, :k].sum(1) + rest * (outside - along[:, :k].sum(1)).clamp(min=0)
        return float((bound / whole).sqrt().mean())

    def missed(k: int) -> float:
        return float((pulled[:, k:].sum(1) / whole).mean()) ** 0.5

    def first(k: int, good: Callable[[int], bool]) -> int:
        while k < rank and not good(k):
            k *= 2
        return min(k, rank)

    leading = first(_LEADING, lambda k: looseness(k) <= _LOOSE)
    return leading, first(_DIRECTIONS, lambda k: missed(k) <= _MISSED)


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
