"""Norms of margins' gradients at images, bounded by the directions in which W_1 acts most.

A bound of |W_1^T v| for every class and image costs a fraction of the gradient itself where most of
W_1 lies in few left singular vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.norms import norms
from raycrt.bounds.rounding import RoundingErrors, root_upper, squares
from raycrt.bounds.spectral import SLACK, eigenvalue_upper, gamma
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.affine import AffineMap
from raycrt.networks.network import Readout


class Pixels:
    """Norms of gradients in all pixels: for first layers whose matrix is not formed."""

    def __init__(self, layer: AffineMap) -> None:
        self.layer = layer

    def __call__(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (n,) from which `norm_upper` bounds the length of W_1^T v, of v (n, width)."""
        pulled = self.layer.transpose(v)
        return squares(v), squares(pulled)

    def norm_upper(self, given: Tensor, pulled: Tensor, errors: RoundingErrors) -> Tensor:
        """Proved bounds, float64, of the norms |W_1^T v| of what was measured, v as it stood."""
        length = root_upper(given, self.layer.out_features)
        computed = root_upper(pulled, self.layer.in_features)
        off = errors.through_layer(0, torch.zeros_like(length), length, given.dtype)
        return computed + off


@dataclass(frozen=True, kw_only=True)
class Leading:
    """Norms of gradients by the first left singular vectors of W_1.

    Always `|W_1^T v|^2 <= |L^T v|^2 + (rest |v|)^2` with L the `columns` (width, k), which are
    those vectors times `sqrt(s^2 - rest^2)`: proved, in float64, by a Cholesky factorisation for
    the L that is stored. `size` bounds |L|.
    """

    columns: Tensor
    size: float
    rest: float

    @staticmethod
    def of(
        layer: AffineMap,
        left: Tensor,
        sizes: Tensor,
        typical: Tensor,
        dtype: torch.dtype,
        tolerances: Tolerances,
    ) -> Leading:
        """`layer` is in float64 and small enough to be formed; `left` (width, rank) and the falling
        `sizes` (rank,) are singular vectors and values, and there are as many columns as gradients
        `typical` (n, width) in z_1 ask for."""
        along, pulled = spread(left, sizes, typical)
        whole = pulled.sum(1).clamp(min=torch.finfo(pulled.dtype).tiny)

        def tight(k: int) -> bool:
            rest = sizes[k].square()
            bound = pulled[:, :k].sum(1) + rest * (squares(typical) - along[:, :k].sum(1))
            return float((bound / whole).clamp(min=0).sqrt().mean()) <= tolerances.loose

        count = first_good(tolerances.leading, len(sizes), tight)
        next_size = sizes[count] if len(sizes) > count else sizes.new_zeros(())
        kept = sizes[:count].square() - next_size.square()
        columns = (left[:, :count] * kept.clamp(min=0).sqrt()).to(dtype)
        return Leading(
            columns=columns,
            size=float(torch.linalg.matrix_norm(columns.double())) * SLACK,
            rest=_rest_upper(layer, columns.double()),
        )

    def __call__(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return squares(v), squares(v @ self.columns)

    def norm_upper(
        self, given: Tensor, pulled: Tensor, errors: RoundingErrors, lost: Tensor | float = 0.0
    ) -> Tensor:
        """`lost` is what `given` lost to underflow more than its own terms."""
        number = torch.finfo(given.dtype)
        width, k = self.columns.shape
        length = (root_upper(given, width).square() + lost).sqrt() * SLACK
        # A product with the leading columns rounds by gamma |L|_F |v| and loses to underflow.
        terms = width + 2
        share = terms * number.eps / (1 - terms * number.eps)
        off = share * self.size * length + 4 * terms * number.smallest_normal * k
        ahead = root_upper(pulled, k) + off
        return (ahead.square() + (self.rest * length).square()).sqrt() * SLACK


Measure = Pixels | Leading


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What `Leading` measures of all margins of a network of two layers, prepared for each label.

    There v is `s * d`, s the slopes and d a difference of two rows of the last matrix: `squared`
    (classes, width, classes) holds d * d for label and target, `products` (classes, width,
    classes k) the columns times d. Both were rounded once, and what is measured is exact but for
    the rounding of sums that `Leading.norm_upper` counts.
    """

    squared: Tensor
    products: Tensor

    @staticmethod
    def of(leading: Leading, readout: Readout, most: int) -> Pairs | None:
        """`readout` is in float64; None where the pairs take more than `most` numbers."""
        columns, classes = leading.columns, len(readout.rows)
        if readout.apart is None or classes**2 * columns.numel() > most:
            return None
        dtype = columns.dtype
        apart = readout.apart.unflatten(0, (classes, classes)).transpose(1, 2)
        products = apart[..., None] * columns.double()[:, None]
        return Pairs(
            squared=apart.square().to(dtype), products=products.flatten(2).to(dtype).contiguous()
        )

    def lost(self, distances: Tensor) -> Tensor:
        """What underflow may take off `|v|^2` where |d| is at most `distances`: a smallest normal
        number for each term, times s^2 or d^2 where the other vanishes; |s| < 2."""
        tiny = torch.finfo(self.squared.dtype).smallest_normal
        return tiny * (distances.square() + 8 * self.squared.shape[1])

    def __call__(self, slopes: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (n, classes) for `Leading.norm_upper`, of slopes (n, width)."""
        order = label.argsort()
        given = slopes.new_empty(len(slopes), self.squared.shape[2])
        pulled = torch.empty_like(given)
        counts = torch.bincount(label, minlength=len(self.squared)).tolist()
        for y, rows in enumerate(order.split(counts)):
            own = slopes.index_select(0, rows)
            ahead = (own @ self.products[y]).unflatten(1, (given.shape[1], -1))
            pulled[rows] = squares(ahead)
            given[rows] = own.square_() @ self.squared[y]
        return given, pulled


def _rest_upper(layer: AffineMap, leading: Tensor) -> float:
    """A number r with `|W^T v|^2 <= |L^T v|^2 + (r |v|)^2` for every v."""
    matrix = layer.matrix()
    mass = float(torch.linalg.matrix_norm(matrix) ** 2 + torch.linalg.matrix_norm(leading) ** 2)
    # W W^T - L L^T as computed, and what forming it can have added.
    rounding = gamma(max(matrix.shape) + leading.shape[1] + 4) * mass * SLACK
    square = max(0.0, eigenvalue_upper(matrix @ matrix.T - leading @ leading.T)) + rounding
    error = norms(layer).matrix_error_upper()
    if error > 0:
        # |W^T v| <= |M^T v| + e |v|, squared, with |M| <= |W| + e.
        square += error * (2 * norms(layer).norm_upper() + 3 * error)
    return math.sqrt(square) * SLACK


def spread(left: Tensor, sizes: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
    """The squares (n, rank) of gradients in z_1 along singular vectors, and those of the pixels."""
    along = (typical @ left).square()
    return along, along * sizes.square()


def first_good(k: int, most: int, good: Callable[[int], bool]) -> int:
    """The first of k, 2k, 4k, ... that is `good`, but no more than `most`."""
    while k < most and not good(k):
        k *= 2
    return min(k, most)
