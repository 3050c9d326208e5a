"""Bounds on the norms of margins' gradients at images, from the leading directions of W_1.

Bounding |W_1^T v| for every class and image costs a fraction of computing the gradient itself where
few left singular vectors carry most of W_1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raycrt.bounds.layers.norms import norms
from raycrt.bounds.rounding import RoundingErrors, root_upper, squares
from raycrt.bounds.spectral import SLACK, eigenvalue_upper, gamma
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.affine import AffineMap
from raycrt.networks.network import Readout


class Pixels:
    """Gradient norms in all pixels, for first layers whose matrix is not formed."""

    def __init__(self, layer: AffineMap) -> None:
        self.layer = layer

    def __call__(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms (n,) of v (n, width) and of its pull-back, from which `norm_upper` bounds
        |W_1^T v|."""
        pulled = self.layer.transpose(v)
        return squares(v), squares(pulled)

    def norm_upper(self, given: Tensor, pulled: Tensor, errors: RoundingErrors) -> Tensor:
        """Proved upper bounds, in float64, on |W_1^T v| for the measured v, taken as exact."""
        length = root_upper(given, self.layer.out_features)
        computed = root_upper(pulled, self.layer.in_features)
        off = errors.through_layer(0, torch.zeros_like(length), length, given.dtype)
        return computed + off


@dataclass(frozen=True, kw_only=True)
class Leading:
    """Gradient norms from the leading left singular vectors of W_1.

    Always `|W_1^T v|^2 <= |L^T v|^2 + (rest |v|)^2`, where L is `columns` (width, k): those vectors
    times `sqrt(s^2 - rest^2)`. The bound is proved for the stored L by a Cholesky factorisation in
    float64. `size` bounds |L|.
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
        """As many columns as the gradients `typical` (n, width) in z_1 call for.

        `layer` is in float64 and small enough to be formed; `left` (width, rank) holds its left
        singular vectors and `sizes` (rank,) its singular values in descending order."""
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
        """`lost` bounds what `given` lost to underflow beyond that of its own terms."""
        number = torch.finfo(given.dtype)
        width, k = self.columns.shape
        length = (root_upper(given, width).square() + lost).sqrt() * SLACK
        # The product with the leading columns errs by up to gamma |L|_F |v|, plus underflow.
        terms = width + 2
        share = terms * number.eps / (1 - terms * number.eps)
        off = share * self.size * length + 4 * terms * number.smallest_normal * k
        ahead = root_upper(pulled, k) + off
        return (ahead.square() + (self.rest * length).square()).sqrt() * SLACK


Measure = Pixels | Leading


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The measurements of `Leading` for all margins of a two-layer network, prepared per label.

    There v is `s * d`, with slopes s and the difference d of two rows of the last matrix. `squared`
    (classes, width, classes) holds d * d for label and target, `products` (classes, width,
    classes k) the columns times d. Both are rounded once; the measurements are then exact up to the
    rounding of sums, which `Leading.norm_upper` accounts for.
    """

    squared: Tensor
    products: Tensor

    @staticmethod
    def of(leading: Leading, readout: Readout, most: int) -> Pairs | None:
        """None where the pairs would take more than `most` numbers; `readout` is in float64."""
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
        """Upper bound on the loss of `|v|^2` to underflow where |d| is at most `distances`: the
        smallest normal number per term, times s^2 or d^2 where the other vanishes; |s| < 2."""
        tiny = torch.finfo(self.squared.dtype).smallest_normal
        return tiny * (distances.square() + 8 * self.squared.shape[1])

    def __call__(self, slopes: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Squares (n, classes) for `Leading.norm_upper` from slopes (n, width)."""
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
    # W W^T - L L^T as computed, plus the rounding error of forming it.
    rounding = gamma(max(matrix.shape) + leading.shape[1] + 4) * mass * SLACK
    square = max(0.0, eigenvalue_upper(matrix @ matrix.T - leading @ leading.T)) + rounding
    error = norms(layer).matrix_error_upper()
    if error > 0:
        # |W^T v| <= |M^T v| + e |v|, squared, with |M| <= |W| + e.
        square += error * (2 * norms(layer).norm_upper() + 3 * error)
    return math.sqrt(square) * SLACK


def spread(left: Tensor, sizes: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
    """Squared components (n, rank) of gradients along singular vectors, in z_1 and in pixels."""
    along = (typical @ left).square()
    return along, along * sizes.square()


def first_good(k: int, most: int, good: Callable[[int], bool]) -> int:
    """The first of k, 2k, 4k, ... that is `good`, capped at `most`."""
    while k < most and not good(k):
        k *= 2
    return min(k, most)
