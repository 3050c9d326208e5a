"""Where points are proved: in the few directions that a first layer acts on, or in all pixels.

A first layer trained on principal components, or with fewer neurons than pixels, does not see most
directions of the input. Let B (d, features) have the others as its orthonormal rows, but for
rounding, and write `W_1 = A B + R`. Then W_1 u is `A (B u)` but for |R| |u|, and the gradient
`W_1^T v` is `B^T (A^T v)` but for |R| |v|: products of d columns in place of all pixels. |R| is
proved and counted as an error of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt.affine import DENSE_ENTRIES, AffineMap
from raycrt.coordinates import Coordinates, Directions, Pixels
from raycrt.rounding import ErrorModel, Slack
from raycrt.spectral import EPS, gamma, gram_iteration_upper

# A direction in which a layer acts less than this, relatively, is left out and counted as error.
_NEGLIGIBLE = 1e-6
# With more directions than this share of the pixels, the detour costs more than it saves.
_FEW = 0.5
# Nor where |R| may take more than about this off radii of the length of an image, relatively.
_COST = 2e-6
_TINY = torch.finfo(torch.float64).smallest_normal


class AllPixels:
    """The pixels themselves: `fast` is the first layer in the solver's type, `exact` in float64."""

    def __init__(self, exact: AffineMap, fast: AffineMap) -> None:
        self.exact, self.fast = exact, fast
        self.slack = Slack.plain(exact.in_features)
        self.size = exact.in_features

    def first(self, x: Tensor) -> Tensor:
        """z_1 (n, width) in float64 at images x (n, features)."""
        return self.exact(x)

    def start(self, coordinates: Coordinates, w: Tensor) -> Tensor:
        """Where the solver goes on from w (n, size) in its own few coordinates."""
        return coordinates.lift(w)

    def point(self, w: Tensor) -> Tensor:
        """The point u (n, features) in float16 at the coordinates w (n, size)."""
        return w.half()

    def coordinates(self, point: Tensor) -> Tensor:
        """B u (n, size) of points u (n, features) in float64."""
        return point

    def image(self, w: Tensor) -> Tensor:
        """W_1 u (n, width) in float64."""
        return self.exact.linear(w)

    def pull(self, v: Tensor) -> Tensor:
        """The gradient W_1^T v in coordinates, of v (n, width), in the type of v."""
        return (self.exact if v.dtype == torch.float64 else self.fast).transpose(v)


@dataclass(frozen=True, kw_only=True)
class Span:
    """The span of the rows of B: `basis` B and `action` A, in float64 and in the solver's type."""

    basis: Tensor
    action: Tensor
    offset: Tensor
    fast_basis: Tensor
    fast_action: Tensor
    slack: Slack

    @staticmethod
    def of(layer: AffineMap, basis: Tensor, dtype: torch.dtype) -> Span:
        """`layer` is in float64 and small enough to be formed."""
        matrix = layer.matrix()
        action = matrix @ basis.T
        rest = gram_iteration_upper(matrix - action @ basis)
        a, b, w = (float(torch.linalg.matrix_norm(part)) for part in (action, basis, matrix))
        d, n = basis.shape
        rows = len(matrix)
        # Frobenius norms bound those of absolute values.
        rest += gamma(d + 4) * (a * b + w) * 2 + layer.matrix_error_upper()
        eye = torch.eye(d, dtype=basis.dtype, device=basis.device)
        skew = float(torch.linalg.matrix_norm(basis @ basis.T - eye)) + gamma(n + 4) * (b * b + d)
        return Span(
            basis=basis,
            action=action,
            offset=layer.offset(),
            fast_basis=basis.to(dtype),
            fast_action=action.to(dtype),
            slack=Slack(
                image=rest + 4 * gamma(n + d + 8) * a * b,
                pull=rest + 4 * gamma(rows + 8) * a * b,
                share=(n + d + 8) * EPS * (1 + b) * 2 + 4 * skew,
                terms=d + 2,
                lost=_TINY * (n + rows + d) ** 2 * (1 + a) * (1 + b),
            ),
        )

    @property
    def size(self) -> int:
        return len(self.basis)

    def first(self, x: Tensor) -> Tensor:
        return torch.addmm(self.offset, x @ self.basis.T, self.action.T)

    def start(self, coordinates: Coordinates, w: Tensor) -> Tensor:
        return F.pad(w, (0, self.size - coordinates.size))

    def point(self, w: Tensor) -> Tensor:
        return (w @ self.fast_basis).half()

    def coordinates(self, point: Tensor) -> Tensor:
        return point @ self.basis.T

    def image(self, w: Tensor) -> Tensor:
        return w @ self.action.T

    def pull(self, v: Tensor) -> Tensor:
        return v @ (self.action if v.dtype == torch.float64 else self.fast_action)


Space = AllPixels | Span


def spaces(
    exact: AffineMap, fast: AffineMap, errors: ErrorModel, typical: Tensor
) -> tuple[Coordinates, Space]:
    """Where the solver starts, and where its points are proved, for a first layer in float64 and in
    the solver's type; `typical` (n, width) are gradients in z_1 as margins have them."""
    if not exact.dense or exact.out_features**2 > DENSE_ENTRIES:
        return Pixels(fast), AllPixels(exact, fast)
    left, sizes, right = torch.linalg.svd(exact.matrix(), full_matrices=False)
    dtype = fast.offset().dtype
    space: Space = AllPixels(exact, fast)
    rank = int((sizes > _NEGLIGIBLE * sizes[0]).sum())
    if 0 < rank <= _FEW * exact.in_features:
        span = Span.of(exact, right[:rank], dtype)
        one = torch.ones(1, dtype=torch.float64)
        off = errors.margin(one, torch.float64, span.slack)
        off += errors.gradient(one, torch.float64, span.slack)
        if float(off) <= _COST * float(exact.transpose(typical).norm(dim=1).mean()):
            space, left, sizes, right = span, left[:, :rank], sizes[:rank], right[:rank]
    return Directions.of(exact, (left, sizes, right), typical, dtype), space
