"""Spaces in which points are proved: the few directions a first layer acts on, or all pixels.

A first layer trained on principal components, or with fewer neurons than pixels, ignores most
directions of the input. Let the rows of B (d, features), orthonormal up to rounding, span the
remaining ones, and write `W_1 = A B + R`. Then W_1 x equals `A (B x)` up to |R| |x|, the gradient
`W_1^T v` equals `B^T (A^T v)` up to |R| |v|, and a step to `x + B^T w` moves z_1 by `A w`, a
product with d columns instead of all pixels. A proved bound on |R| is counted as an error.

The solver works in even fewer coordinates, the `Directions` that capture most of a typical
gradient; no proof depends on how much of the layer they capture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raycrt.bounds.layers.norms import norms
from raycrt.bounds.rounding import FirstLayerError, RoundingErrors
from raycrt.bounds.spectral import EPS, SLACK, gamma, gram_iteration_upper, nonnegative_norm_upper
from raycrt.margins.gradient_norms import Leading, Measure, Pixels, first_good, spread
from raycrt.margins.tolerances import Tolerances
from raycrt.networks.layers.affine import DENSE_ENTRIES, AffineMap, Dense


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
        tolerances: Tolerances,
    ) -> Directions:
        """As many directions as the gradients `typical` (n, width) in z_1 call for.

        `layer` is in float64 and small enough to be formed; `singular` holds its left singular
        vectors (width, rank), values (rank,) and right singular vectors (rank, features)."""
        left, sizes, right = singular
        _, pulled = spread(left, sizes, typical)
        whole = pulled.sum(1).clamp(min=torch.finfo(pulled.dtype).tiny)

        def caught(k: int) -> bool:
            return float((pulled[:, k:].sum(1) / whole).mean()) ** 0.5 <= tolerances.missed

        basis = right[: first_good(tolerances.directions, len(sizes), caught)]
        return Directions(basis=basis.to(dtype), action=(layer.matrix() @ basis.T).to(dtype))

    @property
    def size(self) -> int:
        return len(self.basis)

    def onto(self, first: Tensor, w: Tensor) -> Tensor:
        """z_1 (n, width) at coordinates w (n, size), given its value `first` at w = 0."""
        return torch.addmm(first, w, self.action.T)

    def pull(self, v: Tensor) -> Tensor:
        """The gradient in these coordinates (n, size) from one in z_1 (n, width)."""
        return v @ self.action

    def lift(self, w: Tensor) -> Tensor:
        """The steps u (n, features) in pixels at coordinates w (n, size)."""
        return w @ self.basis


# Gradients are summed over this many neurons at a time: short sums have small rounding errors.
_BLOCK = 256
_TINY = torch.finfo(torch.float64).smallest_normal
_LARGEST_HALF = 6e4


class AllPixels:
    """The space of all pixels, with the first layer `fast` in the solver's type and `exact` in
    float64."""

    def __init__(self, exact: AffineMap, fast: AffineMap, errors: RoundingErrors) -> None:
        self.exact, self.fast = exact, fast
        self.slack = FirstLayerError.plain(exact.in_features)
        if isinstance(exact, Dense):
            self.slack = replace(
                self.slack, spread=errors.magnitude[0], rows=_terms(exact.out_features)
            )
        self.size = exact.in_features

    def first(self, x: Tensor) -> Tensor:
        """z_1 (n, width) in float64 at images x (n, features)."""
        return self.exact(x)

    def rounded(self, w: Tensor) -> Tensor:
        """Coordinates near w (n, size) that a proof may use, in the type of w."""
        return w.half().to(w.dtype)

    def point(self, w: Tensor) -> Tensor:
        """The step u (n, features) in float16 to the coordinates w (n, size) of a proof."""
        return w.half()

    def coordinates(self, point: Tensor) -> Tensor:
        """The coordinates (n, size) of points (n, features), in float64."""
        return point

    def onto(self, first: Tensor, w: Tensor) -> Tensor:
        """z_1 (n, width) at coordinates w (n, size), given `first` at w = 0; in the type of w."""
        return first + (self.exact if w.dtype == torch.float64 else self.fast).linear(w)

    def pull(self, v: Tensor) -> Tensor:
        """The gradient W_1^T v in coordinates for v (n, width), in the type of v."""
        layer = self.exact if v.dtype == torch.float64 else self.fast
        return _blockwise(v, layer.matrix()) if isinstance(layer, Dense) else layer.transpose(v)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The span of the rows of B, with `basis` B and `action` A in float64 and the solver's type."""

    basis: Tensor
    action: Tensor
    offset: Tensor
    fast_basis: Tensor
    fast_action: Tensor
    slack: FirstLayerError
    # Upper bound on |B B^T - I|.
    skew: float
    # Bounds on how far rounding moves a point: a relative and an absolute term.
    relative_rounding: float
    least_rounding: float

    @staticmethod
    def of(layer: AffineMap, basis: Tensor, dtype: torch.dtype) -> Span:
        """`layer` is in float64 and small enough to be formed."""
        matrix = layer.matrix()
        action = matrix @ basis.T
        left_out = float(gram_iteration_upper(matrix - action @ basis))
        a, b, w = (float(torch.linalg.matrix_norm(part)) for part in (action, basis, matrix))
        d, n = basis.shape
        rows = len(matrix)
        # Frobenius norms bound the spectral norms of entrywise absolute values.
        left_out += gamma(d + 4) * (a * b + w) * 2 + norms(layer).matrix_error_upper()
        formed = gamma(n + 4) * w * b + norms(layer).matrix_error_upper() * b
        eye = torch.eye(d, dtype=basis.dtype, device=basis.device)
        skew = float(torch.linalg.matrix_norm(basis @ basis.T - eye)) + gamma(n + 4) * (b * b + d)
        number = torch.finfo(dtype)
        half = torch.finfo(torch.half)
        product = (d + 4) * number.eps / (1 - (d + 4) * number.eps) * b
        return Span(
            basis=basis,
            action=action,
            offset=layer.offset(),
            fast_basis=basis.to(dtype),
            fast_action=action.to(dtype),
            slack=FirstLayerError(
                image=max(left_out, formed) + 4 * gamma(n + d + 8) * a * b,
                pull=left_out,
                spread=nonnegative_norm_upper(action.abs()),
                rows=_terms(rows),
                share=(n + d + 8) * EPS * (1 + b) * 2 + 4 * skew,
                terms=d + 2,
                lost=_TINY * (n + rows + d) ** 2 * (1 + a) * (1 + b),
            ),
            skew=skew,
            relative_rounding=(product + half.eps / 2 * (1 + skew + product)) * SLACK,
            least_rounding=(half.smallest_normal * half.eps + d * number.smallest_normal) * n**0.5,
        )

    @property
    def size(self) -> int:
        return len(self.basis)

    def first(self, x: Tensor) -> Tensor:
        return torch.addmm(self.offset, x @ self.basis.T, self.action.T)

    def rounded(self, w: Tensor) -> Tensor:
        return w.float().to(w.dtype)

    def point(self, w: Tensor) -> Tensor:
        return (w @ self.fast_basis).half()

    def coordinates(self, point: Tensor) -> Tensor:
        return point @ self.basis.T

    def rounding(self, norm: Tensor) -> Tensor:
        """Upper bounds (n,) on the distance of `point` from the exact step of norm `norm` (n,)."""
        moved = self.relative_rounding * norm + self.least_rounding
        within = norm * (1 + self.relative_rounding) < _LARGEST_HALF
        return torch.where(within, moved, torch.inf)

    def onto(self, first: Tensor, w: Tensor) -> Tensor:
        action = self.action if w.dtype == torch.float64 else self.fast_action
        return torch.addmm(first, w, action.T)

    def pull(self, v: Tensor) -> Tensor:
        return _blockwise(v, self.action if v.dtype == torch.float64 else self.fast_action)


Space = AllPixels | Span


def _blockwise(v: Tensor, matrix: Tensor) -> Tensor:
    """v @ matrix, accumulated from partial sums of at most `_BLOCK` terms."""
    parts = zip(v.split(_BLOCK, dim=1), matrix.split(_BLOCK), strict=True)
    left, right = next(parts)
    product = left @ right
    for left, right in parts:
        product += left @ right
    return product


def _terms(rows: int) -> int:
    """Upper bound on the roundings behind an entry of a blockwise product with `rows` terms."""
    return min(rows, _BLOCK) + rows // _BLOCK + 1


def spaces(
    exact: AffineMap,
    fast: AffineMap,
    errors: RoundingErrors,
    typical: Tensor,
    tolerances: Tolerances,
) -> tuple[Measure, Directions | None, Space]:
    """The measure that bounds gradient norms, the coordinates in which the solver starts (None:
    those of the space), and the space in which its points are proved.

    The first layer is given in float64 and in the solver's type; `typical` (n, width) holds typical
    gradients of margins in z_1.
    """
    everywhere = AllPixels(exact, fast, errors)
    if not exact.dense or exact.out_features**2 > DENSE_ENTRIES:
        return Pixels(fast), None, everywhere
    left, sizes, right = torch.linalg.svd(exact.matrix(), full_matrices=False)
    dtype = fast.offset().dtype
    rank = int((sizes > tolerances.negligible * sizes[0]).sum())
    if 0 < rank <= tolerances.few * exact.in_features:
        span = Span.of(exact, right[:rank], dtype)
        one = torch.ones(1, dtype=torch.float64)
        steepness = float(exact.transpose(typical).norm(dim=1).mean())
        value_error = float(errors.margin(one, torch.float64, span.slack))
        gradient_error = float(errors.gradient(one, torch.float64, span.slack))
        # Gradient errors cost to second order. Quotients stay in range where squares do not.
        share = gradient_error / steepness if steepness > 0 else math.inf
        if value_error <= (tolerances.left_out - share * share) * steepness:
            known = left[:, :rank], sizes[:rank]
            return Leading.of(exact, *known, typical, dtype, tolerances), None, span
    return (
        Leading.of(exact, left, sizes, typical, dtype, tolerances),
        Directions.of(exact, (left, sizes, right), typical, dtype, tolerances),
        everywhere,
    )
