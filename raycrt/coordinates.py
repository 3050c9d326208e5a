"""Coordinates for the solver: the directions in which a first layer acts.

Trained first layers act mostly along few directions of the input. Points near an image are looked
for in the coordinates w of `u = Q w`, Q with orthonormal columns, at a fraction of the price of
gradients in all pixels. Nothing that is proved depends on how much of the layer Q catches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.affine import AffineMap

# The fewest directions that the solver works in, and the share of a typical gradient that they may
# miss.
_DIRECTIONS, _MISSED = 64, 0.15


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Coordinates along the first right singular vectors of W_1.

    `basis` is Q^T (size, features) and `action` W_1 Q (width, size), in the solver's type.
    """

    basis: Tensor
    action: Tensor

    @staticmethod
    def of(
        layer: AffineMap,
        singular: tuple[Tensor, Tensor, Tensor],
        typical: Tensor,
        dtype: torch.dtype,
    ) -> Directions:
        """`layer` is in float64 and small enough to be formed; `singular` are its singular vectors
        (width, rank), values (rank,) and vectors (rank, features), and there are as many directions
        as gradients `typical` (n, width) in z_1 ask for."""
        left, sizes, right = singular
        _, pulled = spread(left, sizes, typical)
        whole = pulled.sum(1).clamp(min=torch.finfo(pulled.dtype).tiny)

        def caught(k: int) -> bool:
            return float((pulled[:, k:].sum(1) / whole).mean()) ** 0.5 <= _MISSED

        basis = right[: first_good(_DIRECTIONS, len(sizes), caught)]
        return Directions(basis=basis.to(dtype), action=(layer.matrix() @ basis.T).to(dtype))

    @property
    def size(self) -> int:
        return len(self.basis)

    def onto(self, first: Tensor, w: Tensor) -> Tensor:
        """z_1 (n, width) at coordinates w (n, size) from where it is `first`."""
        return torch.addmm(first, w, self.action.T)

    def pull(self, v: Tensor) -> Tensor:
        """The gradient in the coordinates (n, size), from one in z_1 (n, width)."""
        return v @ self.action

    def lift(self, w: Tensor) -> Tensor:
        """The points u (n, features)."""
        return w @ self.basis


def spread(left: Tensor, sizes: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
    """The squares (n, rank) of gradients in z_1 along singular vectors, and those of the pixels."""
    along = (typical @ left).square()
    return along, along * sizes.square()


def first_good(k: int, most: int, good: Callable[[int], bool]) -> int:
    """The first of k, 2k, 4k, ... that is `good`, but no more than `most`."""
    while k < most and not good(k):
        k *= 2
    return min(k, most)
